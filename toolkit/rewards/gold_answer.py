r"""The reward for a checkable answer: equal to the row's gold answer, as a number or as maths."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from toolkit.errors import RecipeError
from toolkit.recipe.keys import did_you_mean
from toolkit.rewards import mathematics
from toolkit.rewards.answer import answer_block, ends_in_number, exact, final_number, number
from toolkit.rewards.rows import Completion, column, texts
from toolkit.rewards.stated import boxed, stated

CHECKERS = ("number", "math", "exact")
LONGEST_GOLD = 20_000  # characters, of a worked solution

# LaTeX that surrounds a number and changes nothing about it
AROUND = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s?\{[^{}]{0,100}\}|\\[,!;: ]|\\?[$%]|[£€]|~")
TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s?\{([^{}]{1,200})\}")
A_NUMBER = re.compile(
    r"[-−+]?(?:\d{1,9} )?(?:\.?\d[\d,.]{0,400}(?:/\d{1,20}|[eE][+-]?\d{1,3})?"
    r"|\\[dt]?frac\{\d{1,20}\}\{\d{1,20}\})"
    r"(?:\s+(?!(?:or|and|to|pi|sqrt|[a-z])\b)[A-Za-z]{1,20}(?:[ /][A-Za-z]{1,20}){0,5})?"
)
# In a box, what the checker of plain numbers would misread: of \sqrt{36} it would see the 36
NOT_PLAIN = re.compile(
    r"\\(?!(?:text|mathrm|mbox|textbf|[dt]?frac|left|right|times|cdot|div|quad)\b)[a-zA-Z]|\^|!|√"
)
# "10 - 5" gives no answer; "3 \times 10^4" does
SUM = re.compile(r"[\d)}]\s*(?:[-+*×÷]|\\(?:times|cdot|div)\b(?!\s*10\s*\^))\s*\\?[\d({]")
DIGITS = re.compile(r"\d[\d.,/]*")
FUNCTIONS = re.compile(
    r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi|or|and)\b"
)
PROSE = re.compile(r"[^\W\d_]{3}")
SAYS_SOMETHING = re.compile(r"\w|\\")


@dataclass(frozen=True)
class Answer:
    r"""1 where the completion's answer is the row's gold answer, else 0.

    The completion's answer is what stands in `\boxed{…}`, behind `####`, "the answer is" or "A:",
    or at its end; see `toolkit.rewards.stated`. Two numbers are compared by exact value without
    currency, percent and units, whatever their spelling; all else as mathematics, by math-verify.

    None where the gold answer is empty, or neither a number nor mathematics.

    Args:
        column: the gold answer, or a worked solution that ends in it.
        checker: "number", "math", or "exact" for texts that must be equal but for case, spaces and
            a full stop; by default what the gold answer is, a number or mathematics.
    """

    column: str = "answer"
    checker: str | None = None
    __name__ = "answer"

    def __post_init__(self):
        if self.checker not in (None, *CHECKERS):
            raise RecipeError(
                f"reward answer: unknown checker {self.checker!r}"
                f"{did_you_mean(str(self.checker), CHECKERS)}; expected {', '.join(CHECKERS)}"
            )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion."""
        golds = column(self.column, columns, self.__name__)
        rows = zip(texts(completions), golds, strict=True)
        return [self._score(text, gold) for text, gold in rows]

    def states(self, completions: Sequence[Completion]) -> list[bool]:
        """Whether each completion states an answer at all, right or wrong."""
        return [_states(text, self.checker) for text in texts(completions)]

    def _score(self, text: str, gold: Any) -> float | None:
        if isinstance(gold, int | float) and not isinstance(gold, bool):
            gold = json.dumps(gold)
        if not isinstance(gold, str) or not 0 < len(gold) <= LONGEST_GOLD:
            return None
        reference = _reference(gold, self.checker)
        return None if reference is None else float(reference.is_met_by(text))


def _states(text: str, checker: str | None) -> bool:
    if boxed(answer_block(text)) is not None or final_number(text) is not None:
        return True
    return checker in ("math", "exact") and stated(text) is not None


@dataclass(frozen=True)
class Reference:
    """A gold answer as it is compared.

    Attributes:
        kind: one of CHECKERS.
        text: the number, as LaTeX, the expression or the words.
    """

    kind: str
    text: str

    def is_met_by(self, text: str) -> bool:
        """Whether a completion's answer is this one."""
        if self.kind == "number":
            return self._is_number(text)
        said = stated(text)
        if self.kind == "exact":
            return exact(_words(said if said is not None else text), self.text)
        return said is not None and mathematics.equal(self.text, _latex(said)) is True

    def _is_number(self, text: str) -> bool:
        box = boxed(answer_block(text))
        if box is None or plain_number(box) is not None:
            return number(text, self.text)
        one_number = "=" in box or len(DIGITS.findall(box)) == 1
        if one_number and not NOT_PLAIN.search(box) and number(rf"\boxed{{{box}}}", self.text):
            return True
        return not SUM.search(box) and mathematics.equal(self.text, box) is True


@lru_cache(maxsize=4096)
def _reference(gold: str, checker: str | None) -> Reference | None:
    """What a gold answer is; None if the checker, or none of them, can tell."""
    said = stated(gold)
    if checker == "exact":
        words = _words(said if said is not None else gold)
        return Reference("exact", words) if exact(words, words) else None
    value = plain_number(said) if said else None
    in_prose = checker is None and not (said and is_mathematical(said)) and ends_in_number(gold)
    if value is None and (checker == "number" or in_prose):
        value = final_number(gold)
    if value is not None:
        return Reference(checker or "number", str(value))
    if not said or checker == "number":
        return None
    if TEXT.fullmatch(said.strip()) and PROSE.search(_words(said)):
        return Reference("exact", _words(said))
    if is_mathematical(said) and mathematics.is_readable(said):
        return Reference("math", said)
    return None


def plain_number(statement: str) -> Fraction | None:
    r"""The value of a statement that is one number, with its unit: `\$18`, `1{,}000 km`, `50\%`."""
    bare = AROUND.sub(" ", statement.replace("{,}", ",")[:LONGEST_GOLD]).strip(" .")
    return final_number(bare) if A_NUMBER.fullmatch(bare) else None


def is_mathematical(statement: str) -> bool:
    """Whether a statement is an expression and no prose."""
    bare = FUNCTIONS.sub(" ", TEXT.sub(" ", statement))
    return bool(SAYS_SOMETHING.search(statement)) and not PROSE.search(bare)


def _latex(statement: str) -> str:
    """A statement without the unit of a plain number; 1/2 is LaTeX too."""
    value = plain_number(statement)
    return statement if value is None else str(value)


def _words(statement: str) -> str:
    return TEXT.sub(r"\1", statement).strip("$ ")
