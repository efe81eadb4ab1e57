"""What a reward returns, checked and counted before a trainer sees it."""

import inspect
import math
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, TrainingError

Reward = Callable[..., Any]
"""TRL's signature: f(prompts, completions, **columns) -> list[float | None], sync or async."""

PATIENCE = 10  # batches in a row without a difference, before a person is told
LARGEST = 3.4e38  # TRL holds rewards in float32
SHOWN = 60  # characters of a prompt or an error in a message


class Checked:
    """A reward whose every call is checked and counted; see `checked`.

    Attributes:
        calls: how often it was called.
        rows: completions that it was asked about.
        unscored: completions that it returned None for.
        constant: calls that gave all completions, of two or more, one value.
    """

    def __init__(self, function: Reward, name: str, tell: Callable[[str], Any]):
        self.function, self.__name__, self.tell = function, name, tell
        self.calls = self.rows = self.unscored = self.constant = 0
        self._value: float | None = None  # what the batches of the streak all had
        self._streak = self._streak_rows = 0
        self._told: set[bool] = set()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        """The reward's own values as floats, None where it could not score.

        Raises:
            TrainingError: if the reward raises, or returns what is no list of that many numbers.
        """
        try:
            given = self.function(prompts=prompts, completions=completions, **columns)
        except Exception as error:
            raise self._failure(error, prompts) from error
        return self._accepted(given, prompts, columns)

    def _failure(self, error: Exception, prompts: Sequence[Any]) -> ToolkitError:
        """The one line for what a reward raised; what is one already stays."""
        if isinstance(error, ToolkitError):
            return error
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}, "
        if len(frames) == 1:  # raised by the call itself
            place = "called as f(prompts=…, completions=…, **columns), "
        return TrainingError(
            f"reward {self.__name__} raised {type(error).__name__}: {_line(str(error), 200)} "
            f"({place}in a batch of {len(prompts)} whose first prompt begins {_prompt(prompts, 0)});"
            " return None for what cannot be scored"
        )

    def _accepted(
        self, given: Any, prompts: Sequence[Any], columns: dict[str, Any]
    ) -> list[float | None]:
        if hasattr(given, "tolist"):  # a tensor or an array
            given = given.tolist()
        if not isinstance(given, Iterable) or isinstance(given, str | bytes):
            raise TrainingError(
                f"reward {self.__name__} must return a list of {len(prompts)} numbers, one per "
                f"completion, found {_kind(given)}"
            )
        values = list(given)
        if len(values) != len(prompts):
            raise TrainingError(
                f"reward {self.__name__} must return one number per completion: expected "
                f"{len(prompts)}, found {len(values)}"
            )
        scores = [self._score(value, row, prompts) for row, value in enumerate(values)]
        self._count(scores)
        if "log_metric" in columns and scores:
            share = scores.count(None) / len(scores)
            columns["log_metric"](f"rewards/{self.__name__}/unscored", share)
        return scores

    def _score(self, value: Any, row: int, prompts: Sequence[Any]) -> float | None:
        if value is None:
            return None
        try:
            score = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            score = math.nan
        if not abs(score) < LARGEST:
            raise TrainingError(
                f"reward {self.__name__} must return a finite number, or None for what it cannot "
                f"score; found {_kind(value)} for completion {row + 1} of {len(prompts)}, whose "
                f"prompt begins {_prompt(prompts, row)}"
            )
        return score

    def _count(self, scores: Sequence[float | None]) -> None:
        self.calls += 1
        self.rows += len(scores)
        self.unscored += scores.count(None)
        if len(scores) < 2:
            return
        found = {score for score in scores if score is not None}
        if len(found) > 1:
            self._streak = self._streak_rows = 0
            return
        self.constant += bool(found)
        value = found.pop() if found else None
        if value != self._value:
            self._value, self._streak, self._streak_rows = value, 0, 0
        self._streak += 1
        self._streak_rows += len(scores)
        if self._streak >= PATIENCE and (value is None) not in self._told:
            self._told.add(value is None)
            self.tell(self._warning(value))

    def _warning(self, value: float | None) -> str:
        rows = f"{self._streak_rows:,} completions"
        when = "so far" if self._streak_rows == self.rows else f"of its last {self._streak} batches"
        if value is None:
            return (
                f"reward {self.__name__} could score none of {rows} {when}: look at the column "
                f"that it reads"
            )
        return (
            f"reward {self.__name__} gave {value:g} to all {rows} {when}: nothing can be learned from "
            f"it; look at the completions (log_completions: true) and at what it asks for"
        )


class AsyncChecked(Checked):
    """The same around an async reward."""

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """As `Checked.__call__`."""
        try:
            given = await self.function(prompts=prompts, completions=completions, **columns)
        except Exception as error:
            raise self._failure(error, prompts) from error
        return self._accepted(given, prompts, columns)


def checked(
    function: Reward, *, name: str | None = None, tell: Callable[[str], Any] = warnings.warn
) -> Checked:
    """A reward that ends training with one clear line, instead of training on nonsense.

    Where TRL passes `log_metric`, each call logs `rewards/<name>/unscored`: the share of
    completions that the reward returned None for.

    Args:
        function: the reward, sync or async; the result is of the same sort.
        name: how TRL logs it, `rewards/<name>/mean`; by default as TRL itself would.
        tell: takes one line for a person, at most once each: that the reward gave one value to
            every completion of ten batches, and that it could score none of them.
    """
    kind = AsyncChecked if _is_async(function) else Checked
    return kind(function, name or _name(function), tell)


def checked_all(
    functions: Iterable[Reward], *, tell: Callable[[str], Any] = warnings.warn
) -> list[Checked]:
    """Every reward checked; of one name twice, the second is called `name_2`."""
    found: list[Checked] = []
    for function in functions:
        taken = {reward.__name__ for reward in found}
        name, number = _name(function), 1
        while name in taken:
            number += 1
            name = f"{_name(function)}_{number}"
        found.append(checked(function, name=name, tell=tell))
    return found


def _unwrapped(function: Reward) -> Reward:
    while isinstance(function, partial):
        function = function.func
    return function


def _is_async(function: Reward) -> bool:
    """As TRL 1.16's `is_async_callable`, which would load torch."""
    function = _unwrapped(function)
    call = getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _name(function: Reward) -> str:
    function = _unwrapped(function)
    return getattr(function, "__name__", type(function).__name__)


def _prompt(prompts: Sequence[Any], row: int) -> str:
    prompt = prompts[row] if row < len(prompts) else ""
    if not isinstance(prompt, str) and prompt:
        prompt = str(prompt[-1].get("content", ""))  # the last message of a chat
    return repr(_line(str(prompt), SHOWN))


def _line(text: str, longest: int) -> str:
    line = " ".join(text[: 4 * longest].split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str | bytes):
        return f"the text {_line(repr(value), SHOWN)}"
    return f"{type(value).__name__} {_line(repr(value), SHOWN)}"
