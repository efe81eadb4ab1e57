"""Answers before and after, side by side: what a person reads first."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolkit.evaluation.short_names import short_names

SHOWN = 3
LONGEST = 160
"""How much of a question or an answer is shown, in characters."""


def side_by_side(
    lines: Sequence[Mapping[str, Any]], started: Mapping[str, str] | None = None
) -> RenderableType | None:
    """The greedy answers of two models to the first questions of each task.

    The two are the last model and the one whose adapter it was trained on from; where that is not
    known, the first.

    They are the first and not the best: a reader who sees three wants to see what is usual.

    Args:
        lines: kept completions, in the order of the models.
        started: of a model, the one it was trained on from.

    Returns:
        A table, or None unless two models answered.
    """
    greedy = [line for line in lines if line["sample"] is None]
    models: list[str] = list(dict.fromkeys(line["stage"] for line in greedy))
    if len(models) < 2:
        return None
    after = models[-1]
    before = (started or {}).get(after, models[0])
    answers = {(line["stage"], line["task"], line["question"]): line for line in greedy}
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), leading=1
    )
    short = short_names(models)
    for name in ("asked", short.get(before, before), short[after]):
        table.add_column(name, ratio=1, overflow="fold")
    for task, question in _first(greedy):
        pair = [answers.get((model, task, question)) for model in (before, after)]
        if all(pair):
            found = [line for line in pair if line]
            table.add_row(Text(_cut(found[0]["asked"])), *map(_answer, found))
    return Padding(table, (0, 0, 0, 3))


def _first(greedy: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """The first questions of the tasks in turn, and of the first task one more."""
    tasks = list(dict.fromkeys(line["task"] for line in greedy))
    numbers = {
        task: sorted({line["question"] for line in greedy if line["task"] == task})
        for task in tasks
    }
    turns = [
        (task, numbers[task][turn])
        for turn in range(SHOWN)
        for task in tasks
        if turn < len(numbers[task])
    ]
    return turns[:SHOWN]


def _answer(line: Mapping[str, Any]) -> Text:
    """An answer with its verdict."""
    right = line["right"] and line["stopped"]
    words = _cut(line["text"].strip() or "(nothing)")
    return Text(f"{'✓' if right else '✗'} {words}", style="green" if right else "dim")


def _cut(text: str) -> str:
    """A text as one paragraph, no longer than `LONGEST`; what could steer a terminal is a dot."""
    words = "".join(sign if sign.isprintable() else "·" for sign in " ".join(text.split()))
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
