"""What a reward does and returns, checked, timed and counted before a trainer sees it."""

import asyncio
import inspect
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, TrainingError
from toolkit.recipe import StageRecipe
from toolkit.rewards.returned import Wrong, prompt_of, score_of, values_of, words_of
from toolkit.rewards.time_limit import Cut, time_limit

Reward = Callable[..., Any]
"""TRL's signature: f(prompts, completions, **columns) -> list[float | None], sync or async."""

PATIENCE = 10  # batches in a row without a difference, before a person is told
RECENT = 100  # calls that the share of failures is taken of
STOP, SKIP = "stop", "skip"


@dataclass(frozen=True)
class OnError:
    """What happens where a reward fails.

    Attributes:
        does: "stop" ends training; "skip" scores the completions None, and counts them.
        most: with "skip": training ends where over this share of the completions of 100 calls
            failed.
        seconds: that one call may take; None for no limit.
    """

    does: str = STOP
    most: float = 0.05
    seconds: float | None = None

    @classmethod
    def of(cls, recipe: StageRecipe) -> "OnError":
        """What a stage's recipe says."""
        keys = ("on_reward_error", "max_reward_errors", "reward_timeout")
        return cls(*(recipe[key] for key in keys))


class Checked:
    """A reward whose every call is checked, timed and counted; see `checked`.

    Attributes:
        calls: how often it was called.
        rows: completions that it was asked about.
        unscored: completions that it returned None for.
        failed: completions without a score because it failed, with `OnError.does` of "skip".
        missing: which of the completions of the last call these were.
        constant: calls that gave all completions, of two or more, one value.
        told: what a person was told, by what it is about: "constant", "unscored" or "failed".
    """

    def __init__(self, function: Reward, name: str, tell: Callable[[str], Any], on_error: OnError):
        self.function, self.__name__, self.tell, self.on_error = function, name, tell, on_error
        self.calls = self.rows = self.unscored = self.failed = self.constant = 0
        self.missing: list[bool] = []
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT)  # failed, and asked about
        self._streak = self._streak_rows = 0
        self._streak_values: set[float] = set()
        self.told: dict[str, str] = {}

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        """The reward's own values as floats, None where it could not score.

        Raises:
            TrainingError: if the reward raises, takes too long, or returns what is no list of that
                many numbers; with `OnError.does` of "skip", if it does so too often.
        """
        try:
            with time_limit(self.on_error.seconds, self.__name__):
                given = self.function(prompts=prompts, completions=completions, **columns)
                found = self._accepted(given, prompts)
        except Cut as cut:
            found = self._lost(cut, self._late(), prompts)
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            found = self._lost(error, self._failure(error, prompts), prompts)
        return self._counted(found, columns)

    def counts(self) -> dict[str, int]:
        """How many completions it was asked about, and what became of them."""
        scored = self.rows - self.unscored - self.failed
        return {"scored": scored, "unscored": self.unscored, "failed": self.failed}

    def _failure(self, error: BaseException, prompts: Sequence[Any]) -> str:
        """The one line for what a reward raised or returned."""
        if isinstance(error, Wrong):
            return f"reward {self.__name__} {error}"
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}, "
        if frames[-1].filename == __file__:  # raised by the call itself
            place = "called as f(prompts=…, completions=…, **columns), "
        return (
            f"reward {self.__name__} raised {type(error).__name__}: {words_of(error)} "
            f"({place}in a batch of {len(prompts)} whose first prompt begins "
            f"{prompt_of(prompts, 0)}); return None for what cannot be scored"
        )

    def _late(self) -> str:
        return (
            f"reward {self.__name__} took over {self.on_error.seconds:g} s for one call and was cut: "
            "give it more time with reward_timeout, or look at what it waits for"
        )

    def _accepted(self, given: Any, prompts: Sequence[Any]) -> list[float | str | None]:
        """Scores; where a value is wrong and is skipped, what is wrong with it."""
        found: list[float | str | None] = []
        for row, value in enumerate(values_of(given, len(prompts))):
            try:
                found.append(score_of(value))
            except Wrong as error:
                wrong = Wrong(
                    f"{error} for completion {row + 1} of {len(prompts)}, whose prompt begins "
                    f"{prompt_of(prompts, row)}"
                )
                if self.on_error.does == STOP:
                    raise wrong from None
                found.append(self._failure(wrong, prompts))
        return found

    def _lost(
        self, error: BaseException, line: str, prompts: Sequence[Any]
    ) -> list[float | str | None]:
        """A whole call without a score: the line, for each of its completions.

        Raises:
            ToolkitError: where nothing is skipped; and an error that is one line already, of what
                is wrong with the recipe, the data or this machine.
        """
        if isinstance(error, ToolkitError):
            raise error
        if self.on_error.does == STOP:
            raise TrainingError(line) from error
        return [line] * len(prompts)

    def _counted(
        self, found: Sequence[float | str | None], columns: dict[str, Any]
    ) -> list[float | None]:
        self.missing = [isinstance(each, str) for each in found]
        wrong = [each for each in found if isinstance(each, str)]
        scores: list[float | None] = [None if isinstance(each, str) else each for each in found]
        self.calls += 1
        self.rows += len(scores)
        self.failed += len(wrong)
        self.unscored += scores.count(None) - len(wrong)
        self._recent.append((len(wrong), len(scores)))
        self._look_for_a_difference(scores)
        if wrong:
            self._check_failures(wrong[0])
        if "log_metric" in columns and scores:
            self._log(columns["log_metric"], len(wrong), scores)
        return scores

    def _check_failures(self, line: str) -> None:
        failed, rows = (sum(each) for each in zip(*self._recent, strict=True))
        calls = len(self._recent)
        if failed * calls > self.on_error.most * rows * RECENT:
            raise TrainingError(
                f"{line}; it failed for {failed:,} of {rows:,} completions in its last {calls} "
                f"calls, and max_reward_errors allows {self.on_error.most:g} of {RECENT} calls"
            )
        self._tell_once(
            "failed", f"{line}; left out and counted, as all that follow (on_reward_error: skip)"
        )

    def _log(self, log_metric: Callable[..., Any], wrong: int, scores: Sequence[Any]) -> None:
        of = f"rewards/{self.__name__}"
        log_metric(f"{of}/unscored", (scores.count(None) - wrong) / len(scores))
        if self.on_error.does == SKIP:
            log_metric(f"{of}/failed", wrong / len(scores))
        if len(scores) > 1:
            log_metric(f"{of}/zero_spread", float(len(set(scores)) == 1 and None not in scores))

    def _look_for_a_difference(self, scores: Sequence[float | None]) -> None:
        if len(scores) < 2:
            return
        found = {score for score in scores if score is not None}
        if len(found) > 1:
            self._streak = self._streak_rows = 0
            self._streak_values.clear()
            return
        self.constant += bool(found)
        if bool(found) != bool(self._streak_values):
            self._streak = self._streak_rows = 0
        self._streak_values = found | self._streak_values if found else set()
        self._streak += 1
        self._streak_rows += len(scores)
        if self._streak >= PATIENCE:
            self._tell_once("constant" if found else "unscored", self._warning())

    def _warning(self) -> str:
        rows = f"{self._streak_rows:,} completions"
        when = "so far" if self._streak_rows == self.rows else f"of its last {self._streak} batches"
        if not self._streak_values:
            return (
                f"reward {self.__name__} could score none of {rows} {when}: look at the column "
                f"that it reads"
            )
        one = (
            f"{next(iter(self._streak_values)):g} to all {rows} {when}"
            if len(self._streak_values) == 1
            else f"all completions of a batch one value, in each of its last {self._streak} batches"
        )
        return (
            f"reward {self.__name__} gave {one}: no learning signal; look at the completions "
            "(log_completions: true) and at what it asks for"
        )

    def _tell_once(self, about: str, words: str) -> None:
        if about not in self.told:
            self.told[about] = words
            self.tell(words)


class AsyncChecked(Checked):
    """The same around an async reward."""

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """As `Checked.__call__`."""
        task, limit = asyncio.current_task(), asyncio.timeout(self.on_error.seconds)
        try:
            # the watch is for what keeps the loop itself from going on
            with time_limit(self.on_error.seconds, self.__name__, is_cut=False):
                async with limit:
                    given = await self.function(prompts=prompts, completions=completions, **columns)
                found = self._accepted(given, prompts)
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            line = self._late() if limit.expired() else self._failure(error, prompts)
            found = self._lost(error, line, prompts)
        return self._counted(found, columns)


def checked(
    function: Reward,
    *,
    name: str | None = None,
    tell: Callable[[str], Any] = warnings.warn,
    on_error: OnError = OnError(),
) -> Checked:
    """A reward that ends training with one clear line, instead of training on nonsense.

    Where TRL passes `log_metric`, each call logs `rewards/<name>/unscored`, the share of
    completions that the reward returned None for; `rewards/<name>/zero_spread`, 1 where all of them
    got one value; and, where failures are skipped, `rewards/<name>/failed`, their share.

    Args:
        function: the reward, sync or async; the result is of the same sort.
        name: how TRL logs it, `rewards/<name>/mean`; by default as TRL itself would.
        tell: takes one line for a person, at most once each: that every batch of ten had one value,
            that it could score none of them, and that it failed and was skipped.
        on_error: what happens where it fails.
    """
    kind = AsyncChecked if _is_async(function) else Checked
    return kind(function, name or _name(function), tell, on_error)


def checked_all(
    functions: Iterable[Reward],
    *,
    tell: Callable[[str], Any] = warnings.warn,
    on_error: OnError = OnError(),
) -> list[Checked]:
    """Every reward checked; of one name twice, the second is called `name_2`."""
    found: list[Checked] = []
    for function in functions:
        taken = {reward.__name__ for reward in found}
        name, number = _name(function), 1
        while name in taken:
            number += 1
            name = f"{_name(function)}_{number}"
        found.append(checked(function, name=name, tell=tell, on_error=on_error))
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
