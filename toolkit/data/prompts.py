"""Rows to answer: a `prompt`, and beside it every column that a reward may read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.data.bad_rows import BadRows
from toolkit.data.columns import PLACE, exact_columns, exact_rows, kind_of, listed
from toolkit.data.control_tokens import check_spoken
from toolkit.data.plans import (
    CONVERSATIONS,
    SYSTEM,
    TOOLS,
    Plan,
    asking,
    is_conversational,
    plain,
    question_of,
)
from toolkit.data.rules import BrokenRule, check_opening, messages_of, text_of
from toolkit.data.template_render import Template
from toolkit.errors import DataError

# By these names TRL 1.16's GRPOTrainer passes what is its own to a reward.
TAKEN = frozenset(
    {"prompts", "completion", "completions", "completion_ids"}
    | {"trainer_state", "log_extra", "log_metric", "environments"}
)
GOLD, OTHER_GOLD = "answer", "solution"


def possible_plans(columns: Sequence[str], text_field: str | None = None) -> list[Plan]:
    """Every way to read rows with these columns, the most telling first; `text_field` is not read."""
    plans = []
    if "prompt" in columns:
        plans.append(Plan("prompt", ("prompt",), (), _read_prompt, is_text=plain("prompt")))
    if question := asking(columns):
        asked, extra, user, others = question
        note = f"{user} read as the user's message{others}"
        plans.append(Plan("prompt", (asked,), extra, _read_question, note))
    for name in CONVERSATIONS:
        if name in columns:
            system = tuple(c for c in SYSTEM if c in columns) if name != "messages" else ()
            note = f"{name} read as the prompt"
            plans.append(Plan("prompt", (name,), system[:1], _read_conversation, note))
    return [_with_note_on_gold(plan, columns) for plan in plans]


def what_is_missing(columns: Sequence[str], text_field: str | None) -> str:
    """Why there is no plan, and what was expected."""
    if "chosen" in columns and "rejected" in columns:
        return "chosen and rejected hold no prompt of their own; add a column prompt"
    text = "; a column text is a document, not a prompt" if "text" in columns else ""
    return (
        "expected prompt, or messages that end with the user's turn, or question, problem, "
        f"instruction or query; found the columns {listed(columns)}{text}"
    )


def prompt_lengths(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tools: Sequence[Any] | None = None,
    bad: BadRows | None = None,
) -> tuple[Dataset, list[int]]:
    """How many tokens each prompt has, rendered as TRL's GRPOTrainer renders it.

    Args:
        rows: of the form "prompt" or "ranked".
        tokenizer: with a chat template if the prompts are messages.
        tools: as `apply_chat_template` takes them.
        bad: takes rows of a prompt that cannot be asked; without it, the first is an error.

    Returns:
        The rows that can be asked, and the tokens of each one's prompt, the generation prompt
        included.

    Raises:
        DataError: for a prompt that has control tokens or that the template cannot render, with its
            file and row.
    """
    is_chat, template, bad = (
        is_conversational(rows, "prompt"),
        Template(tokenizer),
        bad or BadRows(),
    )
    found: list[int] = []
    kept: list[int] = []
    at = 0
    table: Any
    for table in rows.select_columns(["prompt", "source", "row"]).with_format("arrow").iter(1000):
        batch = exact_columns(table)
        texts = list[str]()
        for prompt, source, row in zip(*batch.values(), strict=True):
            try:
                if is_chat:
                    check_spoken(tokenizer, prompt, tools)
                texts += template.render([prompt], tools, prompt=True) if is_chat else [prompt]
                kept.append(at)
            except DataError as error:
                bad.add(source, row, f"{source}, row {row}: {error}")
            at += 1
        if texts:
            ids = tokenizer(texts, add_special_tokens=not is_chat, return_attention_mask=False)
            found += map(len, ids["input_ids"])
    if not kept:
        raise DataError(f"no prompt can be asked: {'; '.join(bad.found[:1])}")
    return (rows if len(kept) == len(rows) else rows.select(kept)), found


def askable(rows: Dataset, tokenizer: PreTrainedTokenizerBase, bad: BadRows) -> Dataset:
    """The rows whose prompt spells out no control token, with its own tools.

    Args:
        rows: of the form "prompt".
        tokenizer: whose control tokens they are; without a chat template nothing is one.
        bad: takes the others.

    Raises:
        DataError: if too many are bad, or all.
    """
    if not (tokenizer.chat_template and is_conversational(rows, "prompt")):
        return rows
    read = ["prompt", *PLACE, *(name for name in (TOOLS,) if name in rows.column_names)]
    kept: list[int] = []
    for at, row in enumerate(exact_rows(rows.select_columns(read))):
        try:
            check_spoken(tokenizer, row["prompt"], row.get(TOOLS))
            kept.append(at)
        except DataError as error:
            bad.add(row["source"], row["row"], f"{row['source']}, row {row['row']}: {error}")
    if not kept:
        raise DataError(f"no prompt can be asked: {'; '.join(bad.found[:1])}")
    return rows.select(kept)


def prompt_messages(value: Any, column: str) -> list[dict[str, Any]]:
    """A checked conversation that the assistant is to continue.

    Raises:
        BrokenRule: for the first message that breaks a rule, and if the last is the assistant's.
    """
    if not isinstance(value, str | list):
        raise BrokenRule(column, f"expected text or a list of messages, found {kind_of(value)}")
    messages = messages_of(value, column)
    check_opening(messages, column)
    if messages[-1]["role"] == "assistant":
        raise BrokenRule(
            f"{column}[{len(messages) - 1}]",
            "the assistant's turn ends the prompt, so nothing is left to answer: end it with the "
            "user's turn",
        )
    return messages


def _with_note_on_gold(plan: Plan, columns: Sequence[str]) -> Plan:
    if GOLD in columns or OTHER_GOLD not in columns:
        return plan
    note = f"no column {GOLD}, but {OTHER_GOLD}: the reward {GOLD} reads {GOLD} unless told which"
    return replace(plan, note=f"{plan.note}; {note}" if plan.note else note)


def _read_prompt(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return {"prompt": text_of(prompt, "prompt")}
    return {"prompt": prompt_messages(prompt, "prompt")}


def _read_conversation(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    name = plan.needed[0]
    messages = prompt_messages(row[name], name)
    column, system = plan.value(row, SYSTEM)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": text_of(system, column)})
    return {"prompt": messages}


def _read_question(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    return {"prompt": question_of(row, plan)}
