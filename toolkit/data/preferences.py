"""Rows to compare: answers to one prompt and their ranks, of which a pair is the shortest list.

All become `prompt`, `answers` and `ranks`. Of a conversation, each answer is one assistant turn.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from toolkit.data.columns import exact, kind_of, listed
from toolkit.data.plans import TOOLS, Plan, asking, plain, question_of
from toolkit.data.prompts import prompt_messages
from toolkit.data.rules import BrokenRule, check_opening, messages_of, parsed, text_of

PAIR = ("chosen", "rejected")
RANKED = ("prompt", "answers", "ranks")
PAIR_RANKS = [1, 2]
MIXED = (
    "the prompt is text and the answers are messages: it is read as the user's turn, unless they "
    "hold the conversation themselves"
)

Answers = dict[str, Any]  # what each answer's place is called in a message, and the answer


def possible_plans(columns: Sequence[str], text_field: str | None = None) -> list[Plan]:
    """Every way to read rows with these columns, the most telling first; `text_field` is not read."""
    plans = []
    tools = (TOOLS,) if TOOLS in columns else ()
    if set(RANKED) <= set(columns):
        plans.append(Plan("ranked", RANKED, tools, _read_ranked, "", _answers_are_text, MIXED))
    if set(PAIR) <= set(columns):
        if "prompt" in columns:
            needed = ("prompt", *PAIR)
            plan = Plan("ranked", needed, tools, _read_pair, "", plain(*needed), MIXED)
        elif question := asking(columns):
            asked, extra, user, others = question
            note = f"converted to messages: {user} → user{others}, chosen and rejected → assistant"
            plan = Plan("ranked", (asked, *PAIR), (*extra, *tools), _read_pair, note)
        else:
            note = "the prompt is what chosen and rejected both begin with"
            plan = Plan("ranked", PAIR, tools, _read_pair, note, plain(*PAIR))
        plans.append(plan)
    return plans


def what_is_missing(columns: Sequence[str], text_field: str | None) -> str:
    """Why there is no plan, and what was expected."""
    groups = (PAIR, RANKED)
    found = f"found the columns {listed(columns)}"
    if {"completion", "label"} <= set(columns):
        found += "; completion and label are feedback, which needs a prompt beside them"
    for names in groups:
        there = [name for name in names if name in columns and name != "prompt"]
        if there:
            lacking = [name for name in names if name not in columns]
            return f"{listed(there)} without {listed(lacking)}; {found}"
    return (
        "expected prompt, chosen and rejected, or chosen and rejected with the prompt in both, or "
        f"prompt, answers and ranks; {found}"
    )


def _answers_are_text(rows: Dataset) -> bool:
    """Whether the first row's prompt and answers are all text, as those of the others must be."""
    if not plain("prompt")(rows):
        return False
    table: Any = rows.select_columns("answers").with_format("arrow")[:1]
    try:
        (answers,) = (parsed(value, "answers") for value in exact(table.column("answers")))
    except BrokenRule:
        return True  # which row it is, is said when it is read
    return not isinstance(answers, list) or all(isinstance(answer, str) for answer in answers)


def _read_ranked(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    answers, ranks = (parsed(row[name], name) for name in ("answers", "ranks"))
    for name, value in (("answers", answers), ("ranks", ranks)):
        if not isinstance(value, list):
            raise BrokenRule(name, f"expected a list, found {kind_of(value)}")
    if not answers:
        raise BrokenRule("answers", "the list is empty")
    _check_ranks(ranks, len(answers))
    named = {f"answers[{index}]": answer for index, answer in enumerate(answers)}
    return _compared(row["prompt"], named) | {"ranks": ranks}


def _check_ranks(ranks: list[Any], count: int) -> None:
    """Check that there is a rank for each answer, and that none looks like a score."""
    if len(ranks) != count:
        raise BrokenRule("ranks", f"expected {count}, one per answer, found {len(ranks)}")
    for index, rank in enumerate(ranks):
        if isinstance(rank, bool) or not isinstance(rank, int | float) or not math.isfinite(rank):
            found = rank if isinstance(rank, float) else kind_of(rank)
            raise BrokenRule(f"ranks[{index}]", f"expected a number, found {found}")
        if not 1 <= rank <= count:
            raise BrokenRule(
                f"ranks[{index}]",
                f"expected a rank from 1, the best, to {count}, found {rank}; of scores, give the "
                "places: the highest has rank 1",
            )


def _read_pair(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    first = plan.needed[0]
    prompt = row["prompt"] if first == "prompt" else None
    if first not in ("prompt", *PAIR):
        prompt = question_of(row, plan)
    return _compared(prompt, {name: row[name] for name in PAIR}) | {"ranks": PAIR_RANKS}


def _compared(prompt: Any, answers: Answers) -> dict[str, Any]:
    """The prompt and the answers to it, as texts or as messages."""
    first, *others = answers
    for name in others:
        if isinstance(answers[name], str) != isinstance(answers[first], str):
            kinds = [kind_of(answers[n]) for n in (name, first)]
            raise BrokenRule(
                name, f"{kinds[0]}, but {first} is {kinds[1]}: all are text, or all are lists"
            )
    if isinstance(answers[first], str):
        texts = {name: text_of(text, name, empty=True) for name, text in answers.items()}
        if prompt is None:
            return _texts_without_prompt(texts)
        if isinstance(prompt, str):
            return {"prompt": text_of(prompt, "prompt"), "answers": list(texts.values())}
        turns = {n: [{"role": "assistant", "content": text}] for n, text in texts.items()}
        return _conversations(_messages_before(prompt), turns)
    turns = {name: messages_of(value, name) for name, value in answers.items()}
    is_whole = all(messages[0]["role"] != "assistant" for messages in turns.values())
    if prompt is None or (is_whole and isinstance(prompt, str)):
        return _whole_conversations(turns)
    before = _messages_before(prompt)
    if is_whole:
        turns = {name: _after(before, messages, name) for name, messages in turns.items()}
    return _conversations(before, turns)


def _messages_before(prompt: Any) -> list[dict[str, Any]]:
    """The messages of a prompt; a text is the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": text_of(prompt, "prompt")}]
    return prompt_messages(prompt, "prompt")


def _texts_without_prompt(texts: Answers) -> dict[str, Any]:
    """Two texts, and what both begin with as the prompt, by the rule of TRL's `extract_prompt`."""
    chosen, rejected = texts.values()
    shortest = min(len(chosen), len(rejected))
    letters = enumerate(zip(chosen, rejected, strict=False))
    at = next((index for index, (ours, theirs) in letters if ours != theirs), shortest)
    if at == shortest:
        at -= 1  # the shorter one keeps a letter
    elif chosen[:at].endswith(" "):
        at -= 1
    prompt = chosen[: max(0, at)]
    if not prompt.strip():
        raise _no_prompt(texts)
    return {"prompt": prompt, "answers": [chosen[at:], rejected[at:]]}


def _whole_conversations(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Conversations, and the messages that all begin with as the prompt."""
    shared = 0
    for messages in zip(*turns.values(), strict=False):
        if any(message != messages[0] for message in messages):
            break
        shared += 1
    # what is the same to its end still ends with an answer
    shared = min(shared, *(len(messages) - 1 for messages in turns.values()))
    before = next(iter(turns.values()))[:shared]
    if not before:
        raise _no_prompt(turns)
    return _conversations(before, {name: messages[shared:] for name, messages in turns.items()})


def _no_prompt(answers: Answers) -> BrokenRule:
    first, *others = answers
    return BrokenRule(
        first, f"there is no prompt: {listed(others)} begins otherwise; add a column prompt"
    )


def _after(
    before: list[dict[str, Any]], messages: list[dict[str, Any]], name: str
) -> list[dict[str, Any]]:
    """The rest of a conversation that begins with its prompt."""
    if messages[: len(before)] != before or len(messages) == len(before):
        raise BrokenRule(name, "expected the assistant's answer, or the whole prompt and then it")
    return messages[len(before) :]


def _conversations(
    before: list[dict[str, Any]], turns: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """A prompt of messages and the answers to it, each of one turn."""
    for name, messages in turns.items():
        roles = [message["role"] for message in messages]
        if roles != ["assistant"]:
            raise BrokenRule(
                name,
                f"expected one assistant turn after the prompt of {len(before)} "
                f"message{'s' * (len(before) != 1)}, found {listed(roles)}: put into the prompt what "
                "comes before the last turn",
            )
    check_opening(before, "prompt")
    if before[-1]["role"] == "assistant":
        raise BrokenRule(
            next(iter(turns)), "two assistant turns in a row; make them one, or put a turn between"
        )
    return {"prompt": before, "answers": list(turns.values())}
