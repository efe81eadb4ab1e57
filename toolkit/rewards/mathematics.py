r"""Whether two mathematical expressions are equal, by math-verify.

The expressions are read by its LaTeX grammar alone: its other reader goes through `parse_expr` of
SymPy, which runs Python. SymPy may work for years on `9^{9^{9^9}}`, so it works in a process of its
own, with a time limit.
"""

import re
from functools import cache, lru_cache
from typing import Any

from toolkit.errors import RecipeError
from toolkit.rewards.bounded import Bounded

SECONDS = 2.0  # of processor time for a comparison; an ordinary one takes milliseconds
LONGEST = 500  # characters of an expression
MOST_BRACKETS = 60  # the grammar takes seconds for hundreds of open ones

# Without these, SymPy would be asked to write out numbers of more digits than there is memory
TOWER = re.compile(r"\^\s*\{?[^{}^\s]{1,20}\s*\^|!\s*!|\d{7}\s*!|\^\s*\{?\s*-?\s*\d{6}")

# What people write outside LaTeX, in LaTeX
SPELLINGS = (
    (re.compile(r"(?<!\\)\bsqrt\s?\(([^()]{1,50})\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<!\\)\b(sqrt|pi|infty|sin|cos|tan|log|ln|exp)\b"), r"\\\1 "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"√\s?(\w+)"), r"\\sqrt{\1}"),
    (re.compile("π"), r"\\pi "),
    (re.compile("∞"), r"\\infty "),
    (re.compile("≤|<="), r"\\le "),
    (re.compile("≥|>="), r"\\ge "),
    (re.compile("−"), "-"),
    (re.compile("∪"), r"\\cup "),
)


@lru_cache(maxsize=4096)
def equal(gold: str, stated: str) -> bool | None:
    """Whether a stated expression is the gold one; None if the gold one cannot be read.

    Args:
        gold: LaTeX without dollar signs: an expression, equation, inequality, interval, set, tuple
            or matrix.
        stated: the same, of a completion. What cannot be read, or takes too long, is not equal.
    """
    if not is_short(gold):
        return None
    if not is_short(stated):
        return False
    try:
        return _process()(gold, stated)
    except TimeoutError:
        return False


@lru_cache(maxsize=4096)
def is_readable(gold: str) -> bool:
    """Whether a gold expression can be read and compared in time: it is equal to itself."""
    return equal(gold, gold) is True


def is_short(text: str) -> bool:
    """Whether an expression is short enough, and its numbers small enough, to be worked with."""
    brackets = sum(map(text.count, "([{"))
    return 0 < len(text) <= LONGEST and brackets <= MOST_BRACKETS and not TOWER.search(text)


@cache
def _process() -> Bounded:
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            "reward answer needs math-verify for answers that are no plain numbers: "
            "pip install math-verify"
        ) from error
    return Bounded(f"{__name__}:compare", SECONDS, loads=["math_verify"])


def compare(gold: str, stated: str) -> bool | None:
    """`equal`, without a limit: for the process that may be killed."""
    from math_verify import verify

    try:
        expected, found = _parsed(gold), _parsed(stated)
        if not expected:
            return None
        return bool(found) and verify(expected, found, timeout_seconds=None)
    except Exception:  # SymPy raises what it likes
        return False


def _parsed(expression: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    for pattern, latex in SPELLINGS:
        expression = pattern.sub(latex, expression)
    # no time limit of its own: it would be a signal, which cannot end work inside C code
    return parse(
        f"${expression}$",
        [LatexExtractionConfig(boxed_match_priority=-1)],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )
