"""How the columns of a data set are read: one plan per way, and the forms that come of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from datasets import Dataset, Json, Value

from toolkit.data.rules import BrokenRule, text_of

CONVERSATIONS = ("messages", "conversations", "conversation")
ASKED = ("instruction", "question", "problem", "query")
GIVEN = ("input", "context")
SYSTEM = ("system", "system_prompt")
HISTORY = "history"
TOOLS = "tools"
FIELDS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "ranked": ("prompt", "answers", "ranks"),
    "prompt": ("prompt",),
}
"""The columns that carry each form; the first says whether rows are text or conversations."""


def never(_: Dataset) -> bool:
    """Not text."""
    return False


@dataclass(frozen=True)
class Plan:
    """Which columns are read, and how.

    Attributes:
        format: a key of `FIELDS`.
        needed: the columns that no row may lack.
        optional: the columns that a row may lack.
        reading: makes a row of the standard form of a row.
        note: what is converted; empty if nothing is.
        is_text: whether a data set has its first field as text, not as messages.
        mixed_note: what is converted where a column of text becomes messages.
    """

    format: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    reading: Callable[[Mapping[str, Any], "Plan"], dict[str, Any]]
    note: str = ""
    is_text: Callable[[Dataset], bool] = never
    mixed_note: str = ""

    def value(self, row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
        """The optional column that is one of `names`, and what the row has there."""
        column = next((name for name in self.optional if name in names), "")
        return column, row[column] if column else None

    def told(self, dataset: Dataset) -> str:
        """What is converted in this data set; empty if nothing is."""
        is_mixed = not self.is_text(dataset) and plain(self.needed[0])(dataset)
        return self.mixed_note if is_mixed and self.mixed_note else self.note


def is_conversational(rows: Dataset, form: str) -> bool:
    """Whether rows of this form are messages, so that a chat template is needed."""
    return isinstance(rows.features[FIELDS[form][0]], Json)


def plain(*names: str) -> Callable[[Dataset], bool]:
    """Says of a data set whether all these columns are text."""
    return lambda rows: all(_is_plain(rows, name) for name in names)


def _is_plain(rows: Dataset, name: str) -> bool:
    """Whether a column is text, or mixed and text for the greater part: the others are bad rows."""
    if not isinstance(rows.features[name], Json):
        return isinstance(rows.features[name], Value)
    table: Any = rows.select_columns([name]).with_format("arrow")[:]
    first = [(text or "")[:1] for text in table.column(name).to_pylist()]
    return first.count('"') > first.count("[")


def asking(columns: Sequence[str]) -> tuple[str, tuple[str, ...], str, str] | None:
    """The columns of a question that are there; None if there is no question.

    Returns:
        The question's column; those that go with it; both in words, as the user's; and in words
        what else they become.
    """
    asked, given, system, history = (
        next((name for name in names if name in columns), None)
        for names in (ASKED, GIVEN, SYSTEM, (HISTORY,))
    )
    if asked is None:
        return None
    extra = tuple(name for name in (given, system, history) if name)
    user = " and ".join(name for name in (asked, given) if name)
    others = "".join(
        f", {name} → {to}" for name, to in ((system, "system"), (history, "earlier turns")) if name
    )
    return asked, extra, user, others


def question_of(row: Mapping[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """The messages of a question, whose column is the first that the plan needs."""
    asked = plan.needed[0]
    messages = []
    column, system = plan.value(row, SYSTEM)
    if system:
        messages.append({"role": "system", "content": text_of(system, column)})
    for turn in _earlier_turns(row.get(HISTORY)):
        messages.append({"role": "user", "content": text_of(turn[0], HISTORY)})
        messages.append({"role": "assistant", "content": text_of(turn[1], HISTORY)})
    words = text_of(row[asked], asked)
    column, given = plan.value(row, GIVEN)
    if given is not None and text_of(given, column, empty=True).strip():
        words = f"{words}\n\n{given}"
    messages.append({"role": "user", "content": words})
    return messages


def _earlier_turns(history: Any) -> list[Any]:
    """The pairs of what was asked and answered before a question; none for null or empty text.

    Raises:
        BrokenRule: if it is anything else.
    """
    if history in (None, ""):
        return []
    if not isinstance(history, list) or any(
        not isinstance(turn, list) or len(turn) != 2 for turn in cast(list[Any], history)
    ):
        raise BrokenRule(HISTORY, "expected pairs of what was asked and answered")
    return cast(list[Any], history)
