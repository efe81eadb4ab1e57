"""How often the working is shown, how right it is, and what of a gain comes from which.

A model can get better by choosing more often to show its working, by working better, and by
answering better at once. Its accuracy is w·a + (1 - w)·d: the share w that shows the working, the
accuracy a of those that do, and d of the others. So a difference between two models has three
parts, which add up to it:

    choosing  (w₂ - w₁) · ((a₁ - d₁) + (a₂ - d₂)) / 2
    working   (w₁ + w₂) / 2 · (a₂ - a₁)
    direct    (1 - (w₁ + w₂) / 2) · (d₂ - d₁)

Where one of the two never shows its working, or always does, the accuracy that it has no answers
for is taken to be the other's: what changed is then the choice alone.

Source: Kitagawa 1955, "Components of a Difference Between Two Rates", Journal of the American
Statistical Association 50 (272), 1168-1194.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from toolkit.evaluation.graded import Graded


def shown(answers: Sequence[Graded], working: str) -> dict[str, Any]:
    """The share of completions with the working, and the strict accuracy with and without it.

    Args:
        answers: of one stage and task.
        working: what a completion that shows its working has in it.

    Returns:
        `worked`, and `accuracy_worked` and `accuracy_direct`, None where there are no such
        completions.
    """
    worked = [working in answer.text for answer in answers]
    right = [answer.right and answer.stopped for answer in answers]
    with_it = [r for r, w in zip(right, worked, strict=True) if w]
    without = [r for r, w in zip(right, worked, strict=True) if not w]
    return {
        "worked": fmean(worked),
        "accuracy_worked": fmean(with_it) if with_it else None,
        "accuracy_direct": fmean(without) if without else None,
    }


def gains(
    rows: Sequence[Mapping[str, Any]], pairs: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """What each difference between two stages comes from; see the head of this file.

    Args:
        rows: of the exam; those without `worked` are left out.
        pairs: which stages are compared.

    Returns:
        Per task and pair the names of the two as `a` and `b`, `gain` (of b over a), and its parts
        `choosing`, `working` and `direct`; all are shares, not per cent.
    """
    found = {(row["task"], row["stage"]): row for row in rows if row.get("worked") is not None}
    wanted = list(pairs)
    return [
        {"task": task, "a": a, "b": b, **_parts(found[task, a], found[task, b])}
        for task in dict.fromkeys(task for task, _ in found)
        for a, b in wanted
        if (task, a) in found and (task, b) in found
    ]


def _parts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    more = after["worked"] - before["worked"]
    mean = (before["worked"] + after["worked"]) / 2
    a = _known(before["accuracy_worked"], after["accuracy_worked"])
    d = _known(before["accuracy_direct"], after["accuracy_direct"])
    return {
        "gain": after["accuracy"] - before["accuracy"],
        "choosing": more * (a[0] - d[0] + a[1] - d[1]) / 2,
        "working": mean * (a[1] - a[0]),
        "direct": (1 - mean) * (d[1] - d[0]),
    }


def _known(before: float | None, after: float | None) -> tuple[float, float]:
    """Both accuracies; of one that is not known, the other; of none, zeros, whose weight is zero."""
    first = before if before is not None else after
    second = after if after is not None else before
    return first or 0.0, second or 0.0
