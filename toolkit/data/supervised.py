"""Rows to imitate: `messages`, `prompt`+`completion`, `text`, and what is converted to them."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.data.columns import kind_of, listed
from toolkit.data.plans import CONVERSATIONS, SYSTEM, TOOLS, Plan, asking, plain, question_of
from toolkit.data.rules import BrokenRule, check_answers, check_opening, messages_of, text_of

ANSWERED = ("output", "response", "solution", "answer")


def possible_plans(columns: Sequence[str], text_field: str | None = None) -> list[Plan]:
    """Every way to read rows with these columns, the most telling first.

    Args:
        columns: of the data set.
        text_field: the column to train on as text, unless there are messages or prompts.
    """
    plans = []
    tools = (TOOLS,) if TOOLS in columns else ()
    for name in CONVERSATIONS:
        if name in columns:
            system = tuple(c for c in SYSTEM if c in columns) if name != "messages" else ()
            note = "" if name == "messages" else f"{name} read as messages"
            plans.append(Plan("messages", (name,), (*tools, *system[:1]), _read_messages, note))
    if "prompt" in columns and "completion" in columns:
        pair = ("prompt", "completion")
        is_text = plain("prompt")
        plans.append(Plan("prompt_completion", pair, tools, _read_completion, is_text=is_text))
    if text_field is not None:  # TRL reads it where there are no messages and no prompts
        return plans + ([_text_plan(text_field)] if text_field in columns else [])
    answered = next((name for name in ANSWERED if name in columns), None)
    if (question := asking(columns)) and answered:
        asked, extra, user, others = question
        note = f"converted to messages: {user} → user, {answered} → assistant{others}"
        plans.append(Plan("messages", (asked, answered), (*extra, *tools), _read_asked, note))
    if "text" in columns:
        plans.append(_text_plan("text"))
    return plans


def what_is_missing(columns: Sequence[str], text_field: str | None) -> str:
    """Why there is no plan, and what was expected."""
    if text_field is not None:
        return f"there is no column {text_field!r} (dataset_text_field); found {listed(columns)}"
    if "chosen" in columns and "rejected" in columns:
        return "chosen and rejected are preferences: stage reward or dpo reads them, sft does not"
    if {"role", "content"} <= set(columns):
        return "each row is one message; put the messages of a conversation into a list, messages"
    if "input_ids" in columns:
        return "the rows are tokens already; give the messages or texts that they were made from"
    only = "prompt without completion; " if "prompt" in columns else ""
    return (
        f"{only}expected messages, prompt and completion, or text (or conversations, or instruction "
        f"and output, or question and answer); found the columns {listed(columns)}"
    )


def _text_plan(column: str) -> Plan:
    return Plan("text", (column,), (), _read_text, is_text=lambda _: True)


def _read_messages(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    name = plan.needed[0]
    messages = messages_of(row[name], name)
    check_opening(messages, name)
    check_answers(messages, name)
    column, system = plan.value(row, SYSTEM)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": text_of(system, column)})
    return {"messages": messages}


def _read_completion(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise BrokenRule(
            "completion",
            f"{kind_of(completion)}, but prompt is {kind_of(prompt)}: both are text, or both lists",
        )
    if isinstance(prompt, str):
        return {
            "prompt": text_of(prompt, "prompt", empty=True),
            "completion": text_of(completion, "completion"),
        }
    before = messages_of(prompt, "prompt")
    check_opening(before, "prompt")
    after = messages_of(completion, "completion", earlier=before)
    check_answers(after, "completion")
    return {"prompt": before, "completion": after}


def _read_asked(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    messages, answered = question_of(row, plan), plan.needed[1]
    messages.append({"role": "assistant", "content": text_of(row[answered], answered)})
    return {"messages": messages}


def _read_text(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    return {"text": text_of(row[plan.needed[0]], plan.needed[0])}
