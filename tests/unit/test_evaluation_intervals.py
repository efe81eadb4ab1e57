"""Wilson's interval against published values, McNemar's test against the binomial sum."""

from fractions import Fraction
from math import comb, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.evaluation.intervals import mcnemar_exact, wilson

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(successes, n, low, high):
    found = wilson(successes, n)
    assert (round(found[0], 4), round(found[1], 4)) == (low, high)


@given(COUNTS)
def test_ends_are_where_the_score_test_turns(counts):
    """Each end p of the interval solves (share - p)^2 = z^2 p (1 - p) / n."""
    successes, n = counts
    low, high = wilson(successes, n)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        expected = 1.959963984540054**2 * end * (1 - end) / n
        assert isclose((share - end) ** 2, expected, rel_tol=1e-6, abs_tol=1e-12)


@given(COUNTS)
def test_intervals_mirror_nest_and_shrink(counts):
    successes, n = counts
    low, high = wilson(successes, n)
    mirrored = wilson(n - successes, n)
    assert isclose(low, 1 - mirrored[1], abs_tol=1e-12)
    wide, wider = wilson(successes, n, 0.9), wilson(successes, n, 0.99)
    assert wider[0] <= low <= wide[0]
    assert wide[1] <= high <= wider[1]
    more = wilson(4 * successes, 4 * n)
    assert more[1] - more[0] < high - low


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2), (float("nan"), 2)])
def test_no_interval_of_nothing(successes, n):
    with pytest.raises(ValueError, match="expected 0 to n successes"):
        wilson(successes, n)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_sum(a_only, b_only):
    n = a_only + b_only
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(min(a_only, b_only) + 1))
    assert mcnemar_exact(a_only, b_only) == float(min(Fraction(1), 2 * tail))
    assert mcnemar_exact(a_only, b_only) == mcnemar_exact(b_only, a_only)


def test_mcnemar_by_hand():
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(5, 5) == 1
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(1, 5) == 2 * (1 + 6) / 64
    assert mcnemar_exact(0, 231) == 2**-230
    assert mcnemar_exact(0, 3000) == 0  # too small for a double, and no error
    with pytest.raises(ValueError, match="expected counts"):
        mcnemar_exact(-1, 3)
