"""The scores of an exam as metrics of `evaluate`; they need no network."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import evaluate
from datasets import Features, Value

from toolkit.evaluation.intervals import wilson

DESCRIPTION = "The share of right answers to an exam, each question answered once or several times."
INPUTS = """
Args:
    question: the position of the question that each completion answers.
    right: whether it gives the answer.
    stopped: whether it ended by itself, and was not cut off.
    tokens: how many it has.
Returns:
    accuracy: share of completions that are right and ended, the mean over questions.
    low, high: its Wilson interval (95 %) with the questions as the units.
    lenient: the same share, however they ended.
    stopped: share of completions that ended.
    tokens: mean length of a completion.
    n: number of questions.
    samples: number of completions per question.
"""


class ExamAccuracy(evaluate.Metric):
    """Strict and lenient accuracy of completions, grouped by their question.

    Give it `cache_dir`, a folder that can be written, and `keep_in_memory=True`, with which it
    leaves nothing there.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features(
            question=Value("int64"),
            right=Value("bool"),
            stopped=Value("bool"),
            tokens=Value("int64"),
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features
        )

    def _compute(  # type: ignore[override]  # upstream declares no parameters
        self,
        question: Sequence[int],
        right: Sequence[bool],
        stopped: Sequence[bool],
        tokens: Sequence[int],
    ) -> dict[str, Any]:
        strict = _by_question(question, [r and s for r, s in zip(right, stopped, strict=True)])
        n = len(strict)
        accuracy = fmean(map(fmean, strict))
        low, high = wilson(min(accuracy * n, n), n)
        return {
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "lenient": fmean(map(fmean, _by_question(question, right))),
            "stopped": fmean(map(fmean, _by_question(question, stopped))),
            "tokens": fmean(tokens),
            "n": n,
            "samples": max(map(len, strict)),
        }


def _by_question(question: Sequence[int], values: Sequence[bool]) -> list[list[bool]]:
    """The values of each question together."""
    found: dict[int, list[bool]] = {}
    for position, value in zip(question, values, strict=True):
        found.setdefault(position, []).append(value)
    return list(found.values())
