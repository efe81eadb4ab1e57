"""Pair accuracy, its interval, calibration, and whether a reward model goes by length."""

from io import StringIO
from math import exp, log

import evaluate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from toolkit.evaluation.intervals import wilson
from toolkit.evaluation.pair_accuracy import PairAccuracy
from toolkit.evaluation.pair_report import pair_scores, pair_table, pair_warning


def pairs_of(*rows):
    """Pairs from (prompt, chosen, rejected, chosen_tokens, rejected_tokens)."""
    names = ("prompt", "chosen", "rejected", "chosen_tokens", "rejected_tokens")
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_by_hand():
    assert issubclass(PairAccuracy, evaluate.Metric)
    found = pair_scores(
        pairs_of(
            (0, 2.0, 1.0, 5, 3),  # right, the longer one
            (0, 0.0, 3.0, 5, 3),  # wrong: the shorter one has the higher score
            (7, 1.0, 0.5, 2, 4),  # right, the shorter one
            (9, 1.0, 1.0, 4, 4),  # a tie between equally long ones
        )
    )
    assert (found["pairs"], found["prompts"]) == (4, 3)
    assert found["accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert (found["low"], found["high"]) == pytest.approx(wilson(2, 3))
    assert found["margin"] == pytest.approx(((1 - 3) / 2 + 0.5 + 0) / 3)
    assert found["longer_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["longer_share"] == pytest.approx((0.5 + 0) / 2)
    parts = {key: (part["accuracy"], part["pairs"]) for key, part in found["by_length"].items()}
    assert parts == {"longer": (0.5, 2), "equal": (0.5, 1), "shorter": (1.0, 1)}
    assert found["length_bias"] is None


def test_a_prompt_counts_once_however_many_pairs_it_has():
    rows = [(0, 1.0, 0.0, 1, 1)] * 6 + [(1, 0.0, 1.0, 1, 1)]
    found = pair_scores(pairs_of(*rows))
    assert found["accuracy"] == 0.5
    assert (found["low"], found["high"]) == pytest.approx(wilson(1, 2))
    assert found["margin"] == 0
    assert found["calibration_error"] == pytest.approx(sigmoid(1) - 0.5)


def sigmoid(margin):
    return 1 / (1 + exp(-margin))


def test_calibration_by_hand():
    """Two bins: eight pairs surer than they are right, and one tie, which is perfectly sure."""
    margin = log(0.87 / 0.13)
    rows = [(index, margin, 0.0, 1, 2) for index in range(6)]
    rows += [(6, 0.0, margin, 1, 2), (7, 0.0, margin, 1, 2), (8, 0.5, 0.5, 1, 2)]
    found = pair_scores(pairs_of(*rows))
    assert found["calibration_error"] == pytest.approx(8 / 9 * (0.87 - 0.75))
    assert [(b["low"], b["high"], b["pairs"]) for b in found["bins"]] == [
        (0.5, 0.55, 1),
        (0.85, 0.9, 8),
    ]
    assert found["bins"][1]["accuracy"] == pytest.approx(0.75)
    assert found["bins"][1]["confidence"] == pytest.approx(0.87)


def test_a_calibrated_model_has_no_error():
    rows = []
    for index in range(100):
        margin = log(3)  # sure by 75 %
        rows.append((index, *((margin, 0.0) if index % 4 else (0.0, margin)), 1, 1))
    assert pair_scores(pairs_of(*rows))["calibration_error"] == pytest.approx(0, abs=1e-12)
    assert sigmoid(log(3)) == pytest.approx(0.75)


PAIRS = st.lists(
    st.tuples(
        st.integers(0, 5), st.floats(-50, 50), st.floats(-50, 50), st.integers(1, 9),
        st.integers(1, 9),
    ),
    min_size=1,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_properties(rows):
    found = pair_scores(pairs_of(*rows))
    assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    assert 0 <= found["calibration_error"] <= 1
    assert sum(b["pairs"] for b in found["bins"]) == len(rows)
    assert len(found["bins"]) <= 10
    assert sum(part["pairs"] for part in found["by_length"].values()) == len(rows)
    swapped = [(p, other, one, short, long) for p, one, other, long, short in rows]
    mirror = pair_scores(pairs_of(*swapped))
    assert mirror["accuracy"] == pytest.approx(1 - found["accuracy"])
    assert mirror["longer_share"] == pytest.approx(found["longer_share"])
    assert pair_scores(pairs_of(*rows[::-1]))["margin"] == pytest.approx(found["margin"])


def by_length(sign, *, chosen_longer, right_elsewhere=0):
    """Scores that are a length, or minus one; some of the pairs against it are right all the same."""
    rows = []
    for index in range(20):
        lengths = (9, 4) if index < chosen_longer else (4, 9)
        scores = tuple(sign * length for length in lengths)
        if scores[0] < scores[1] and right_elsewhere:
            scores, right_elsewhere = scores[::-1], right_elsewhere - 1
        rows.append((index, *map(float, scores), *lengths))
    return pair_scores(pairs_of(*rows))


@pytest.mark.parametrize(("sign", "liked"), [(1, "longer"), (-1, "shorter")])
def test_a_model_that_only_likes_a_length_is_named(sign, liked):
    found = by_length(sign, chosen_longer=12)
    assert found["length_bias"] == liked
    line = pair_warning(found)
    assert line.startswith("warning: this reward model merely likes")
    assert f"it prefers the {liked} one in 100 % of pairs" in line
    assert "is right in 0 % of the" in line


def test_a_model_that_is_right_although_most_are_longer_is_not_named():
    found = by_length(1, chosen_longer=19, right_elsewhere=1)
    assert found["accuracy"] == 1.0
    assert found["longer_share"] == 0.95
    assert found["length_bias"] is None
    assert pair_warning(found) is None


def test_a_model_that_prefers_longer_ones_less_often_is_not_named():
    found = by_length(1, chosen_longer=12, right_elsewhere=3)  # 17 of 20 choices are the longer
    assert found["longer_share"] == pytest.approx(0.85)
    assert found["by_length"]["shorter"]["accuracy"] < 0.5
    assert found["length_bias"] is None


def test_where_every_chosen_answer_is_longer_nobody_can_tell():
    found = by_length(1, chosen_longer=20)
    assert found["length_bias"] is None
    assert "in no held-out pair is the chosen answer the shorter one" in pair_warning(found)
    same = pair_scores(pairs_of((0, 1.0, 0.0, 3, 3)))
    assert same["longer_share"] is None
    assert pair_warning(same) is None


def test_the_table_fits_a_terminal():
    screen = Console(width=80, record=True, file=StringIO())
    screen.print(pair_table(by_length(1, chosen_longer=12)))
    text = screen.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "held-out pairs: 20 of 20 prompts" in text
    assert "60.0 [38.7, 78.1]" in text
    assert "the longer answer is preferred in 100 %" in text
    assert "is as long" not in text
