"""How sure a score is, and how sure a difference: Wilson's interval and McNemar's exact test."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, stdev

STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
    2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
    2.045, 2.042,
)  # fmt: skip
"""The 0.975 quantiles of Student's t for 1 to 30 degrees of freedom; beyond, those of 30."""


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; unlike the usual one, it holds at 0 % and 100 % too.

    Args:
        successes: how many of them are right; a mean over questions times their number need not
            be whole.
        n: how many questions, at least one. With k samples per question it is still the number of
            questions: samples of one question are not independent. A mean of samples varies less
            than one answer does, so then the interval is wider than it must be, never narrower.
        confidence: how often such an interval holds the true share, in (0, 1).

    Returns:
        Its two ends, within [0, 1].

    Raises:
        ValueError: if there is no question, or more successes than questions.

    Source:
        Wilson 1927, Journal of the American Statistical Association 22 (158), 209-212.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 to n successes of n >= 1, found {successes} of {n}")
    share = successes / n
    z_squared = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = share + z_squared / (2 * n)
    half = sqrt(z_squared * (share * (1 - share) / n + z_squared / (4 * n * n)))
    whole = 1 + z_squared / n
    # rounding must not take the share itself out of the interval
    return (
        max(0.0, min(share, (centre - half) / whole)),
        min(1.0, max(share, (centre + half) / whole)),
    )


def mcnemar_exact(a_only: int, b_only: int) -> float:
    """How likely a difference at least this large is, two-sided, if neither answers better.

    Args:
        a_only: questions that the first answers right and the second does not.
        b_only: the other way round.

    Returns:
        Twice the smaller tail of a binomial distribution of a half, at most 1; summed in whole
        numbers, and rounded once.

    Raises:
        ValueError: for a negative count.

    Source:
        McNemar 1947, Psychometrika 12 (2), 153-157; its exact form, by the binomial distribution.
    """
    if min(a_only, b_only) < 0:
        raise ValueError(f"expected counts, found {a_only} and {b_only}")
    n = a_only + b_only
    term = tail = 1
    for k in range(min(a_only, b_only)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def paired_difference(
    a_only: int, b_only: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of a difference between two shares of the same questions.

    Args:
        a_only: questions that the first answers right and the second does not.
        b_only: the other way round.
        n: all questions, at least one.
        confidence: how often such an interval holds the true difference, in (0, 1).

    Returns:
        The ends of the second's share less the first's, within [-1, 1].

    Raises:
        ValueError: if there is no question, or fewer than answered differently.

    Source:
        Agresti and Min 2005, Statistics in Medicine 24 (5), 729-740: Wald's interval after half a
        question is added to each of the four cells.
    """
    if n < 1 or min(a_only, b_only) < 0 or a_only + b_only > n:
        raise ValueError(f"expected counts of n >= 1 questions, found {a_only} and {b_only} of {n}")
    more, differing = b_only - a_only, a_only + b_only + 1
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre, half = more / (n + 2), z * sqrt(differing - more * more / (n + 2)) / (n + 2)
    return max(-1.0, centre - half), min(1.0, centre + half)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over a few runs, such as seeds of one recipe.

    Args:
        values: one for each run, at least two.

    Returns:
        Its two ends; of more than 31 runs a little wider than it must be.

    Raises:
        ValueError: of fewer than two values, which tell nothing of how runs differ.

    Source:
        Student 1908, Biometrika 6 (1), 1-25.
    """
    if len(values) < 2:
        raise ValueError(f"expected two runs or more, found {len(values)}")
    half = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
