"""How well scores tell the chosen answer of a pair from the rejected one, as a metric of `evaluate`."""

from collections.abc import Iterable, Mapping, Sequence
from math import exp
from statistics import fmean
from typing import Any, NamedTuple

import evaluate
from datasets import Features, Value

from toolkit.evaluation.intervals import wilson

BINS = 10
LIKES_LENGTH = 0.9
"""The share of choices from which on a model is said to go by length, if it also errs by it."""

DESCRIPTION = "The share of pairs in which the chosen answer has the higher score."
INPUTS = """
Args:
    prompt: which prompt each pair answers.
    chosen: the score of the answer that was preferred.
    rejected: the score of the other.
    chosen_tokens: the length of the answer that was preferred.
    rejected_tokens: the length of the other.
Returns:
    accuracy: share of pairs in the right order, the mean over prompts; a tie counts half.
    low, high: its Wilson interval (95 %) with the prompts as the units.
    margin: mean of chosen minus rejected, over prompts.
    calibration_error: expected calibration error of sigmoid(margin), in ten bins.
    bins: of each that is not empty low, high, the mean confidence, the accuracy, the pairs.
    by_length: accuracy where the chosen answer is longer, equally long or shorter; null for none.
    longer_accuracy: what preferring the longer answer would have.
    longer_share: share of pairs of unequal length in which the longer answer has the higher score.
    prompts, pairs: how many there are.
"""


class Pair(NamedTuple):
    """One pair and what was made of it.

    Attributes:
        prompt: which prompt it answers.
        right: whether the chosen answer has the higher score; a half for a tie.
        margin: by how much.
        longer: whether the chosen answer is the longer one; a half if both are equally long.
    """

    prompt: int
    right: float
    margin: float
    longer: float


class PairAccuracy(evaluate.Metric):
    """Pair accuracy, margin, calibration, and what of it is length; one prompt counts once.

    Give it `cache_dir`, a folder that can be written, and `keep_in_memory=True`, with which it
    leaves nothing there.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features(
            prompt=Value("int64"),
            chosen=Value("float64"),
            rejected=Value("float64"),
            chosen_tokens=Value("int64"),
            rejected_tokens=Value("int64"),
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features
        )

    def _compute(  # type: ignore[override]  # upstream declares no parameters
        self,
        prompt: Sequence[int],
        chosen: Sequence[float],
        rejected: Sequence[float],
        chosen_tokens: Sequence[int],
        rejected_tokens: Sequence[int],
    ) -> dict[str, Any]:
        pairs = [
            Pair(which, order(one, other), one - other, order(long, short))
            for which, one, other, long, short in zip(
                prompt, chosen, rejected, chosen_tokens, rejected_tokens, strict=True
            )
        ]
        unequal = [pair for pair in pairs if pair.longer != 0.5]
        # the longer answer has the higher score where both say chosen, or both say rejected
        liked = [(pair.prompt, 1 - abs(pair.right - pair.longer)) for pair in unequal]
        error, bins = calibration(pairs)
        return accuracy_of(pairs) | {
            "margin": over_prompts((pair.prompt, pair.margin) for pair in pairs),
            "calibration_error": error,
            "bins": bins,
            "by_length": {
                words: accuracy_of([pair for pair in pairs if pair.longer == longer])
                for words, longer in (("longer", 1.0), ("equal", 0.5), ("shorter", 0.0))
            },
            "longer_accuracy": over_prompts((pair.prompt, pair.longer) for pair in pairs),
            "longer_share": over_prompts(liked) if liked else None,
        }


def order(one: float, other: float) -> float:
    """1 if the first is larger, 0 if the second is, a half if neither."""
    return 0.5 if one == other else float(one > other)


def over_prompts(values: Iterable[tuple[int, float]]) -> float:
    """The mean over prompts of the mean over each prompt's pairs."""
    return fmean(fmean(found) for found in _by_prompt(values))


def accuracy_of(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Accuracy with its interval, and how many prompts and pairs it is of; null if of none."""
    if not pairs:
        return {"accuracy": None, "low": None, "high": None, "prompts": 0, "pairs": 0}
    prompts = len({pair.prompt for pair in pairs})
    accuracy = over_prompts((pair.prompt, pair.right) for pair in pairs)
    low, high = wilson(min(accuracy * prompts, prompts), prompts)
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "prompts": prompts,
        "pairs": len(pairs),
    }


def calibration(pairs: Sequence[Pair]) -> tuple[float, list[dict[str, float]]]:
    """The expected calibration error, and the bins that it is summed over.

    A pair has no order of its own, so what is predicted is that the answer with the higher score is
    the chosen one, with the confidence sigmoid(|margin|), from a half to 1.

    Returns:
        The mean distance between confidence and accuracy, each prompt counting once, and the bins.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.
    """
    weights = {pair.prompt: 0 for pair in pairs}
    for pair in pairs:
        weights[pair.prompt] += 1
    width = 0.5 / BINS
    bins: dict[int, list[tuple[float, float, float]]] = {}
    for pair in pairs:
        confidence = 1 / (1 + exp(-abs(pair.margin)))
        place = min(int((confidence - 0.5) / width), BINS - 1)
        weight = 1 / weights[pair.prompt] / len(weights)
        bins.setdefault(place, []).append((weight, confidence, pair.right))
    found, error = [], 0.0
    for place, entries in sorted(bins.items()):
        total = sum(weight for weight, _, _ in entries)
        confidence = sum(weight * value for weight, value, _ in entries) / total
        accuracy = sum(weight * value for weight, _, value in entries) / total
        error += total * abs(accuracy - confidence)
        low = 0.5 + place * width
        found.append(
            {
                "low": round(low, 4),
                "high": round(low + width, 4),
                "confidence": confidence,
                "accuracy": accuracy,
                "pairs": len(entries),
            }
        )
    return error, found


def length_bias(found: Mapping[str, Any]) -> str | None:
    """Whether scores go by length and little else: "longer", "shorter" or None.

    They do if nine choices in ten or more are the longer answer, and where the chosen answer is the
    shorter one, fewer than half are right; and the other way round.

    Args:
        found: as `PairAccuracy` gives it.
    """
    share = found["longer_share"]
    if share is None:
        return None
    for liked, against, agreement in (
        ("longer", "shorter", share),
        ("shorter", "longer", 1 - share),
    ):
        accuracy = found["by_length"][against]["accuracy"]
        if agreement >= LIKES_LENGTH and accuracy is not None and accuracy < 0.5:
            return liked
    return None


def _by_prompt(values: Iterable[tuple[int, float]]) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for prompt, value in values:
        found.setdefault(prompt, []).append(value)
    return list(found.values())
