"""Showing the working: its share, its accuracy, and what of a gain comes from it."""

import random

import pytest

from toolkit.evaluation.graded import Graded
from toolkit.evaluation.working import gains, shown


def answers(*texts):
    """Texts; with `!` it is right, with `…` it was cut off."""
    return [
        Graded("sft", "exam", 0, index, text, "…" not in text, "!" in text, 1)
        for index, text in enumerate(texts)
    ]


def test_shares_by_hand():
    found = answers("Let us count. !", "Let us count. !…", "Let us count.", "!", "", "", "", "")
    assert shown(found, "Let us count.") == {
        "worked": 3 / 8, "accuracy_worked": 1 / 3, "accuracy_direct": 1 / 5,
    }  # fmt: skip
    assert shown(answers("!", ""), "count") == {
        "worked": 0, "accuracy_worked": None, "accuracy_direct": 0.5,
    }  # fmt: skip
    assert shown(answers("count!"), "count")["accuracy_direct"] is None


def row(stage, worked, a, d, task="exam"):
    """A row of the exam; its accuracy follows."""
    accuracy = worked * (a or 0) + (1 - worked) * (d or 0)
    parts = {"worked": worked, "accuracy_worked": a, "accuracy_direct": d}
    return {"stage": stage, "task": task, "accuracy": accuracy, **parts}


def test_a_gain_by_hand():
    (gain,) = gains([row("sft", 0.4, 0.8, 0.1), row("ppo", 0.9, 0.9, 0.2)], [("sft", "ppo")])
    assert gain.pop("task") == "exam"
    assert (gain.pop("a"), gain.pop("b")) == ("sft", "ppo")
    assert gain == pytest.approx(
        {"gain": 0.83 - 0.38, "choosing": 0.5 * 0.7, "working": 0.65 * 0.1, "direct": 0.35 * 0.1}
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.0, None, 0.1), (1.0, 0.9, None), (0.8, 0, 0)),  # the choice alone
        ((0.0, None, 0.1), (0.5, 0.9, 0.1), (0.4, 0, 0)),
        ((0.0, None, 0.1), (0.0, None, 0.3), (0, 0, 0.2)),
        ((1.0, 0.5, None), (1.0, 0.75, None), (0, 0.25, 0)),
    ],
)
def test_gains_where_one_of_the_two_ways_is_not_taken(before, after, expected):
    (gain,) = gains([row("a", *before), row("b", *after)], [("a", "b")])
    assert [gain[k] for k in ("choosing", "working", "direct")] == pytest.approx(expected)


def test_the_parts_add_up_to_the_gain():
    rng = random.Random(0)
    for _ in range(200):
        stages = [row(name, *(rng.random() for _ in range(3))) for name in "ab"]
        (gain,) = gains(stages, [("a", "b")])
        parts = gain["choosing"] + gain["working"] + gain["direct"]
        assert parts == pytest.approx(gain["gain"])


def test_rows_without_working_and_stages_that_are_not_there_have_no_gain():
    plain = {"stage": "b", "task": "people", "accuracy": 1.0}
    rows = [row("a", 0.5, 1, 0), row("b", 0.5, 1, 0), {**plain, "stage": "a"}, plain]
    found = gains(rows, [("a", "b"), ("b", "c")])
    assert [(gain["task"], gain["a"], gain["b"]) for gain in found] == [("exam", "a", "b")]
