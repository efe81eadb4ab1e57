"""Votes counted, and the best of some: the arithmetic that exams and thinking share."""

from collections.abc import Iterable, Sequence


def tally(said: Sequence[str | None], weights: Iterable[float] | None = None) -> dict[str, float]:
    """How much speaks for each answer, in the order in which the answers were first given.

    Args:
        said: what each sample says; None does not vote.
        weights: of each sample; by default all are 1.
    """
    found: dict[str, float] = {}
    for answer, weight in zip(said, weights or [1.0] * len(said), strict=True):
        if answer is not None:
            found[answer] = found.get(answer, 0.0) + weight
    return found


def leader(votes: dict[str, float]) -> str | None:
    """The answer with the most votes; of equal ones the first that was given. None of no votes."""
    return max(votes, key=votes.__getitem__) if votes else None


def highest(scores: Sequence[float | None]) -> int | None:
    """Where the highest score is, the first of equal ones; None where there is none at all."""
    known = [place for place, score in enumerate(scores) if score is not None]
    return max(known, key=lambda place: scores[place] or 0.0, default=None)
