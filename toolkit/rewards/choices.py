"""The reward for multiple choice: the one choice that a completion names is the right one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.rewards.answer import LETTERS, choice, is_gradable
from toolkit.rewards.rows import Completion, column, from_json, texts


@dataclass(frozen=True)
class Choice:
    """1 where the completion names the right choice and no other, by letter or text; else 0.

    None where the row's answer is none of its choices, or its choices are no list of texts.

    Args:
        column: the right answer: a letter, a choice's text, its label, or its position from 0.
        choices_column: the choices: a list, or an object of `text` and `label` as in ARC.
    """

    column: str = "answer"
    choices_column: str = "choices"
    __name__ = "choice"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion."""
        answers = column(self.column, columns, self.__name__)
        offered = column(self.choices_column, columns, self.__name__)
        rows = zip(texts(completions), answers, offered, strict=True)
        return [_score(text, answer, from_json(choices)) for text, answer, choices in rows]


def _score(text: str, answer: Any, choices: Any) -> float | None:
    labels = None
    if isinstance(choices, Mapping):
        choices, labels = choices.get("text"), choices.get("label")
    if not isinstance(choices, Sequence) or isinstance(choices, str | bytes):
        return None
    choices = [str(words) for words in choices]
    if labels and answer in labels:
        answer = LETTERS[labels.index(answer) : labels.index(answer) + 1]
    elif type(answer) is int:
        answer = LETTERS[answer : answer + 1] if answer >= 0 else ""
    if not isinstance(answer, str) or not is_gradable("choice", answer, choices):
        return None
    return float(choice(text, answer, choices))
