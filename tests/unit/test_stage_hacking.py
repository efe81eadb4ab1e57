"""What the guard makes of the rollouts that it has measured: numbers alone, nothing is trained."""

import random

import pytest
import torch

from toolkit.rewards.diversity import compression_ratio, distinct_ngrams
from toolkit.stages import hacking
from toolkit.stages.hacking import Rollout
from toolkit.stages.rollout_signals import agreement


def rollouts(golds, rewards=None, error=0.02, **signals):
    """One rollout after another."""
    rewards = rewards or [1.0] * len(golds)
    return [
        Rollout(step, reward, gold, error, **signals)
        for step, (gold, reward) in enumerate(zip(golds, rewards, strict=True))
    ]


def test_gold_that_falls_while_the_reward_rises_is_seen_with_its_numbers():
    up, down = [0.5] * 5, [0.2] * 5
    found = hacking.fallen(rollouts(up + down, [1.0] * 5 + [2.0] * 5))
    assert found is not None
    assert (found.step, found.gold, found.reward) == (4, (0.5, pytest.approx(0.2)), (1.0, 2.0))
    assert found.error == pytest.approx((2 * 5 * 0.02**2) ** 0.5 / 5)


@pytest.mark.parametrize(
    "golds",
    [
        [0.5] * 9,  # no window before the last that does not overlap it
        [0.2] * 5 + [0.5] * 5,
        [0.5] * 5 + [0.47] * 5,  # less than chance gives
        [None] * 20,
    ],
)
def test_what_is_no_fall(golds):
    assert hacking.fallen(rollouts(golds)) is None


def test_chance_alone_is_hardly_ever_a_fall():
    """Without any change in gold, 30 trainings of 60 rollouts of 100 completions."""
    draw, alarms = random.Random(0), 0
    for _ in range(30):
        golds = [draw.gauss(0.5, 0.05) for _ in range(60)]
        history = rollouts(golds, error=0.05)
        alarms += any(hacking.fallen(history[:end]) for end in range(10, 61, 2))
    assert alarms == 0


def test_completions_of_one_prompt_are_one_draw():
    scores = [1.0] * 8 + [0.0] * 8
    assert hacking.mean_error(scores, 8) == (0.5, pytest.approx(0.5))
    assert hacking.mean_error(scores, 1)[1] == pytest.approx(0.129, abs=1e-3)
    assert hacking.mean_error([1.0], 1) == (1.0, 0.0)


def test_a_checkpoint_has_the_gold_of_the_rollouts_nearest_to_it():
    history = rollouts([0.0, 0.1, 0.6, 0.9, 0.9, 0.6, 0.1, 0.0])
    assert hacking.gold_at(history, 3) == pytest.approx(0.8)
    assert hacking.best_of(history, [2, 4, 6]) == (4, pytest.approx(0.8))
    assert hacking.best_of(history, [8]) is None, "its policy has sampled nothing yet"
    assert hacking.best_of([], [2]) is None


@pytest.mark.parametrize(
    ("signal", "first", "now", "told"),
    [
        ("length", 10, 31, True), ("length", 30, 9, True), ("length", 14, 33, False),
        ("distinct_ngrams", 0.9, 0.4, True), ("distinct_ngrams", 0.9, 0.5, False),
        ("compression_ratio", 2, 4.5, True), ("compression_ratio", 2, 3.9, False),
        ("agreement", 0.5, -0.1, True), ("agreement", 0.1, -0.1, False),
    ],
)  # fmt: skip
def test_signals_warn_when_they_have_left_where_they_began(signal, first, now, told):
    history = rollouts([0.5] * 5, **{signal: first}) + rollouts([0.5] * 5, **{signal: now})
    assert (signal in hacking.warnings_of(history)) is told
    assert signal not in hacking.warnings_of(history[:9])


def test_batches_of_one_evaluation_are_one_rollout():
    parts = [Rollout(7, 1.0, 0.2, 0.03, length=10), Rollout(7, 2.0, 0.4, 0.04, length=20)]
    found = hacking.joined(parts)
    assert (found.step, found.reward, found.gold) == (7, 1.5, pytest.approx(0.3))
    assert found.gold_error == pytest.approx(0.025)
    assert (found.length, found.agreement) == (15, None)


def test_distinct_ngrams_and_compression():
    assert distinct_ngrams([[1, 2, 3, 4]]) == 1
    assert distinct_ngrams([[1, 1, 1, 1], [1, 2, 3, 4], [5]]) == 0.75
    assert distinct_ngrams([[1, 2]]) is None
    varied = ["".join(chr(97 + (7 * i * i + j) % 26) for j in range(9)) for i in range(40)]
    repeated = compression_ratio(["the " * 20, "a"])
    assert repeated is not None
    assert repeated > 2 * (compression_ratio(varied) or 0)
    alone = compression_ratio(["an answer"])
    assert compression_ratio(["an answer"] * 40) == pytest.approx(alone), "what answers share"
    assert compression_ratio(["", " "]) is None


def test_agreement_is_that_of_the_two_who_agree_least():
    one = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert agreement([one, 2 * one]) == pytest.approx(1)
    assert agreement([one, 2 * one, -one]) == pytest.approx(-1)
    assert agreement([one]) is None
    assert agreement([one, torch.ones(4)]) is None, "no spread"
    assert agreement([one, torch.tensor([1.0, 2.0, 3.0, float("nan")])]) == pytest.approx(1)
