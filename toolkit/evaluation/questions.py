"""The rows of a task: each with a question, its answer and perhaps choices, each of them checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

from toolkit.data.columns import PLACE, exact_columns, kind_of, listed
from toolkit.data.plans import ASKED
from toolkit.data.rules import BrokenRule, text_of
from toolkit.data.supervised import ANSWERED
from toolkit.errors import DataError
from toolkit.rewards.answer import LETTERS, normalised

CHOICES = "choices"


@dataclass(frozen=True)
class Question:
    """One question of an exam, or one solved example.

    Attributes:
        question: as it is asked.
        answer: what a right completion says; of an example, what the model is shown.
        choices: what can be chosen from, in order; None where the answer is free.
        where: the file and row that it comes from.
    """

    question: str
    answer: str
    choices: tuple[str, ...] | None = None
    where: str = ""

    @property
    def lettered(self) -> str:
        """The choices, one line each, as "A. Paris"."""
        pairs = zip(LETTERS, self.choices or (), strict=False)
        return "\n".join(f"{letter}. {words}" for letter, words in pairs)


def questions_of(
    table: Dataset, *, question_column: str | None = None, answer_column: str | None = None
) -> list[Question]:
    """Every row of a table as a question.

    Args:
        table: the rows, with `source` and `row`.
        question_column: what is asked; by default `question` or what training reads as one.
        answer_column: the reference; by default `answer` or what training reads as one.

    Raises:
        DataError: if there is no such column, or for the first row that breaks a rule.
    """
    source = str(table[0]["source"])
    asked = _column(table, question_column, ("question", *ASKED), source, "question")
    answered = _column(table, answer_column, ("answer", *ANSWERED), source, "answer")
    kind = table.features[answered]
    columns = exact_columns(table.with_format("arrow")[:])
    if isinstance(kind, ClassLabel):  # of its number, nobody could say where it counts from
        columns[answered] = [None if v is None else kind.int2str(v) for v in columns[answered]]
    nothing = [None] * len(table)
    rows = zip(
        columns[asked], columns[answered], columns.get(CHOICES, nothing),
        columns["source"], columns["row"], strict=True,
    )  # fmt: skip
    found = []
    for question, answer, choices, source, number in rows:
        where = f"{source}, row {number}"
        try:
            text = text_of(question, asked).strip()
            reference = _lettered(_answer(answer, answered), choices)
            found.append(Question(text, reference, _choices(choices), where))
        except BrokenRule as error:
            raise DataError(f"{where}, {error}") from error
    return found


def _column(
    table: Dataset, named: str | None, known: Sequence[str], source: str, meaning: str
) -> str:
    """The column that a task names, or else the first known one that is there."""
    columns = [name for name in table.column_names if name not in PLACE]
    wanted = (named,) if named else tuple(dict.fromkeys(known))
    for name in wanted:
        if name in columns:
            return name
    raise DataError(
        f"{source}: there is no column {' or '.join(wanted)}; found {listed(columns)}: name the "
        f"right one with {meaning}_column"
    )


def _answer(value: Any, column: str) -> str:
    """The reference as text; a number as JSON writes it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return text_of(value, column).strip()


def _lettered(answer: str, choices: Any) -> str:
    """The letter of an answer that is one of the labels that its choices have in the data."""
    labels = choices.get("label") if isinstance(choices, Mapping) else None
    return LETTERS[labels.index(answer)] if labels and answer in labels else answer


def _choices(value: Any) -> tuple[str, ...] | None:
    """The choices of a row: a list, or an object of `text` and `label`, as ARC on the Hub.

    Raises:
        BrokenRule: if they are no texts, fewer than two, or cannot be told apart.
    """
    if value is None:
        return None
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BrokenRule(CHOICES, f"expected a list of texts, found {kind_of(value)}")
    choices = tuple(_answer(item, f"{CHOICES}[{index}]") for index, item in enumerate(value))
    if not 2 <= len(choices) <= len(LETTERS):
        raise BrokenRule(CHOICES, f"expected 2 to {len(LETTERS)} choices, found {len(choices)}")
    for index, words in enumerate(choices):
        _check_choice(normalised(words), index, [normalised(other) for other in choices[:index]])
    return choices


def _check_choice(words: str, index: int, earlier: Sequence[str]) -> None:
    """Check that a choice's text names it and no other."""
    place = f"{CHOICES}[{index}]"
    if not words:
        raise BrokenRule(place, "the text has nothing but punctuation")
    if words in earlier:
        raise BrokenRule(place, f"the same as choice {LETTERS[earlier.index(words)]}")
    if len(words) == 1 and words.upper() in LETTERS and words.upper() != LETTERS[index]:
        raise BrokenRule(place, f"{words.upper()} is the letter of another choice")
