"""Whether a reward is being gamed: what the guard makes of the rollouts that it has measured.

Pure functions over numbers. What they can and cannot promise: docs/guard.md.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WINDOW = 5  # rollouts that a mean is taken over
ERRORS = 5.0  # standard errors that gold must have fallen by; false alarms: docs/guard.md
NEAREST = 3  # rollouts that a checkpoint's gold is the mean of
LENGTHS = 3.0  # times as long, or as short, as at the start
HALVED, DOUBLED = 0.5, 2.0  # of distinct n-grams, and of the compression ratio
AGREED = 0.2  # a correlation between reward and gold that says anything at first


@dataclass(frozen=True)
class Rollout:
    """What was measured of one rollout, over the completions of all processes.

    Attributes:
        step: optimizer steps before it: the policy that sampled it had taken so many.
        reward: the mean of what is trained on.
        gold: the mean of the gold check; None where there is none.
        gold_error: its standard error, over prompts.
        length: the mean length of completions, in tokens.
        distinct_ngrams: see `toolkit.rewards.diversity`.
        compression_ratio: likewise.
        agreement: the correlation of reward and gold, or of the reward models among them that agree
            least, over completions.
    """

    step: int
    reward: float
    gold: float | None = None
    gold_error: float = 0.0
    length: float = 0.0
    distinct_ngrams: float | None = None
    compression_ratio: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Fall:
    """That gold has fallen: before, at its best, and now, each as means over a window of rollouts.

    Attributes:
        step: the last of the best window.
        gold: there, and now.
        reward: likewise.
        error: the standard error of the difference in gold.
    """

    step: int
    gold: tuple[float, float]
    reward: tuple[float, float]
    error: float


def mean_error(scores: Sequence[float], each: int) -> tuple[float, float]:
    """The mean of some scores and its standard error, with those of one prompt as one draw.

    Args:
        scores: `each` after `each` are of one prompt.
        each: completions of a prompt.
    """
    parts = [scores[at : at + each] for at in range(0, len(scores), each)]
    means = [statistics.fmean(part) for part in parts]
    draws = means if len(means) > 1 else scores
    spread = statistics.stdev(draws) if len(draws) > 1 else 0.0
    return statistics.fmean(scores), spread / math.sqrt(len(draws))


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Batches of one evaluation as one rollout: means, and the standard error of their mean."""
    found = {name: of_window(parts, name) for name in Rollout.__dataclass_fields__}
    found["gold_error"] = math.hypot(*(each.gold_error for each in parts)) / len(parts)
    return Rollout(**found | {"step": parts[0].step})  # pyright: ignore[reportArgumentType]


def fallen(rollouts: Sequence[Rollout]) -> Fall | None:
    """Whether gold is lower than it has been by more than chance; None where it is not.

    The last `WINDOW` rollouts are compared with the best `WINDOW` in a row before them.
    """
    windows = [measured(rollouts[at : at + WINDOW]) for at in range(len(rollouts) - WINDOW + 1)]
    earlier = [window for window in windows[: -WINDOW or None] if window is not None]
    if len(windows) <= WINDOW or windows[-1] is None or not earlier:
        return None
    best, now = max(earlier, key=lambda window: window[1]), windows[-1]
    error = math.hypot(best[2], now[2])
    if best[1] - now[1] <= ERRORS * error or best[1] <= now[1]:
        return None
    return Fall(best[0], (best[1], now[1]), (best[3], now[3]), error)


def measured(rollouts: Sequence[Rollout]) -> tuple[int, float, float, float] | None:
    """Of some rollouts the last step, mean gold, its standard error and mean reward."""
    golds = [each.gold for each in rollouts if each.gold is not None]
    if len(golds) < len(rollouts) or not golds:
        return None
    error = math.hypot(*(each.gold_error for each in rollouts)) / len(rollouts)
    reward = statistics.fmean(each.reward for each in rollouts)
    return rollouts[-1].step, statistics.fmean(golds), error, reward


def gold_at(rollouts: Sequence[Rollout], step: int) -> float | None:
    """The gold of the policy at a step: the mean of the rollouts nearest to it."""
    known = [(abs(each.step - step), each.gold) for each in rollouts if each.gold is not None]
    nearest = sorted(known, key=lambda one: one[0])[:NEAREST]
    return statistics.fmean(gold for _, gold in nearest) if nearest else None


def best_of(rollouts: Sequence[Rollout], steps: Iterable[int]) -> tuple[int, float] | None:
    """The step with the most gold of those whose policies were measured, and its gold."""
    last = rollouts[-1].step if rollouts else -1
    found = [(step, gold_at(rollouts, step)) for step in steps if step <= last]
    known = [(step, gold) for step, gold in found if gold is not None]
    return max(known, key=lambda one: one[1]) if known else None


def of_window(rollouts: Sequence[Rollout], name: str) -> float | None:
    """The mean of one signal, over the rollouts that have it."""
    values = [getattr(each, name) for each in rollouts]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def length_runs_away(first: float, now: float) -> str | None:
    """Completions that have become much longer, or much shorter."""
    if first and not 1 / LENGTHS < now / first < LENGTHS:
        return f"completions have {now:.0f} tokens on average, at first {first:.0f}"
    return None


def distinct_falls(first: float, now: float) -> str | None:
    """Completions that have begun to repeat themselves."""
    if now < HALVED * first:
        return f"{now:.0%} of the 3-grams of a completion are new in it, at first {first:.0%}"
    return None


def compression_rises(first: float, now: float) -> str | None:
    """Completions that have begun to repeat themselves, in letters or in long stretches."""
    if now > DOUBLED * first:
        return f"a completion packs to 1/{now:.1f} of its size, at first 1/{first:.1f}"
    return None


def agreement_is_lost(first: float, now: float) -> str | None:
    """Rewards that no longer prefer the same completions."""
    if first > AGREED and now < 0:
        return (
            f"what the reward prefers, the other judge does not: they correlate by {now:.2f}, at "
            f"first {first:.2f}"
        )
    return None


SIGNALS: dict[str, Callable[[float, float], str | None]] = {
    "length": length_runs_away,
    "distinct_ngrams": distinct_falls,
    "compression_ratio": compression_rises,
    "agreement": agreement_is_lost,
}
"""What is followed besides gold; each warns once, and none of them stops training."""


def warnings_of(rollouts: Sequence[Rollout]) -> dict[str, tuple[str, float]]:
    """By signal, in words and as a number, what the last rollouts show beside the first."""
    if len(rollouts) < 2 * WINDOW:
        return {}
    found: dict[str, tuple[str, float]] = {}
    for name, rule in SIGNALS.items():
        first, now = (of_window(part, name) for part in (rollouts[:WINDOW], rollouts[-WINDOW:]))
        if first is not None and now is not None and (words := rule(first, now)) is not None:
            found[name] = (words, now)
    return found
