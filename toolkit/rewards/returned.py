"""What a reward returns, as one finite number or None per completion."""

import inspect
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

LARGEST = 3.4e38  # TRL holds rewards in float32
SHOWN = 60  # characters of a prompt or a value in a message
UNORDERED = (str, bytes, bytearray, Mapping, set, frozenset)


class Wrong(Exception):
    """What a reward returned, in words that go behind its name."""


def values_of(given: Any, number: int) -> list[Any]:
    """The values that a reward returned, one per completion.

    Args:
        given: a list, a tuple, an array, a tensor of one dimension, or what can be gone through.
        number: of completions.

    Raises:
        Wrong: if it is no list, or has another number of values.
    """
    if hasattr(given, "tolist"):  # a tensor or an array
        given = given.tolist()
    if not isinstance(given, Iterable) or isinstance(given, UNORDERED):
        if inspect.iscoroutine(given):
            given.close()
        raise Wrong(
            f"must return a list of {number} numbers, one per completion, found {kind_of(given)}"
        )
    values = list(islice(given, number + 1))  # a generator may never end
    if len(values) != number:
        more = len(given) if isinstance(given, Sized) else "more"
        raise Wrong(
            f"must return one number per completion: expected {number}, found "
            f"{len(values) if len(values) < number else more}"
        )
    return values


def score_of(value: Any) -> float | None:
    """One value as a float; None for None.

    Raises:
        Wrong: if it is no finite number.
    """
    if value is None:
        return None
    try:
        score = None if isinstance(value, str | bytes) else float(value)
    except Exception:  # a tensor of two values, an object with a __float__ of its own
        score = None
    if score is None or not abs(score) < LARGEST:
        raise Wrong(
            f"must return a finite number, or None for what it cannot score; found {kind_of(value)}"
        )
    return score


def kind_of(value: Any) -> str:
    """A value in a message."""
    if value is None:
        return "None"
    try:
        words = repr(value)
    except Exception:
        words = "without a repr"
    if isinstance(value, str | bytes):
        return f"the text {one_line(words, SHOWN)}"
    return f"{type(value).__name__} {one_line(words, SHOWN)}"


def words_of(error: BaseException) -> str:
    """What an error says, in a message."""
    try:
        return one_line(str(error), 200)
    except Exception:
        return "without words"


def prompt_of(prompts: Sequence[Any], row: int) -> str:
    """The beginning of a prompt, quoted, in a message."""
    prompt = prompts[row] if row < len(prompts) else ""
    if not isinstance(prompt, str) and prompt:
        prompt = str(prompt[-1].get("content", ""))  # the last message of a chat
    return repr(one_line(str(prompt), SHOWN))


def one_line(text: str, longest: int) -> str:
    """A text in one line that a terminal can show, cut to a length."""
    line = " ".join(text[: 4 * longest].split())
    line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)
    return line if len(line) <= longest else line[: longest - 1] + "…"
