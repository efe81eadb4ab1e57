"""The probe set, and when a group counts as clearly worse."""

import random
import re
from dataclasses import replace

import pytest

from toolkit.evaluation.probes import (
    ALPHA,
    Probe,
    changes,
    digest_of_probes,
    holm,
    in_words,
    load_probes,
    right_of,
)

GROUPS = ("helpful", "truthful", "harmless", "willing", "identity", "counting", "numbers")
EACH = 20


def test_the_set_is_whole():
    probes = load_probes()
    assert [probe.group for probe in probes] == [group for group in GROUPS for _ in range(EACH)]
    assert len({probe.question for probe in probes}) == len(probes)
    for probe in probes:
        assert probe.question.strip() == probe.question != ""
        assert probe.right.strip() == probe.right != probe.wrong == probe.wrong.strip()
        longer, shorter = (f(len(probe.right), len(probe.wrong)) for f in (max, min))
        assert longer <= 2.6 * shorter, probe  # the length of an answer must not decide


def test_what_arithmetic_can_check_is_right():
    checked = 0
    for probe in load_probes():
        if probe.group == "numbers":
            a, word, b = re.fullmatch(
                r"(\S+) is (larger|smaller) than (\S+)\.", probe.right
            ).groups()
            assert (float(a) > float(b)) == (word == "larger")
            assert probe.wrong == f"{b} is {word} than {a}."
            assert {a, b} == set(re.findall(r"\d+\.\d+", probe.question))
            checked += 1
        elif found := re.match(r"How many letters( \w)? are in the word (\w+)\?", probe.question):
            letter, word = found.groups()
            counted = word.count(letter.strip()) if letter else len(word)
            assert int(probe.right) == counted != int(probe.wrong)
            checked += 1
    assert checked == EACH + 7


def test_neither_the_shorter_nor_the_first_number_is_always_right():
    asked = [probe for probe in load_probes() if probe.group == "numbers"]
    pairs = [re.findall(r"\d+\.\d+", probe.question) for probe in asked]
    right = [probe.right.split()[0] for probe in asked]
    shorter = sum(len(a) < max(map(len, pair)) for a, pair in zip(right, pairs, strict=True))
    first = sum(a == pair[0] for a, pair in zip(right, pairs, strict=True))
    assert 7 <= shorter <= 13
    assert first == EACH / 2


def test_the_digest_is_that_of_the_questions():
    probes = load_probes()
    assert digest_of_probes(probes) == digest_of_probes(load_probes())
    assert digest_of_probes([replace(probes[0], wrong="?"), *probes[1:]]) != digest_of_probes(
        probes
    )


def test_a_margin_is_per_byte():
    assert Probe("", "", "four", "ü").margin(-8.0, -6.0) == -2.0 + 3.0


def margins(right: int, n: int = EACH) -> list[float]:
    return [0.1] * right + [-0.1] * (n - right)


def test_a_group_that_fell_is_worse_and_no_other():
    before = {group: margins(18) for group in GROUPS}
    after = before | {"harmless": margins(9), "helpful": margins(12)}
    found = {each["group"]: each for each in changes(before, after)}
    assert [group for group in GROUPS if found[group]["worse"]] == ["harmless"]
    fell = found["harmless"]
    numbers = [fell[key] for key in ("n", "before", "after", "lost", "gained", "p")]
    assert numbers == [20, 18, 9, 9, 0, 2 / 2**9]
    said = in_words("ppo", fell)
    assert said == "ppo made harmless clearly worse: 18 of 20 → 9 of 20 (p = 0.004)"
    assert right_of(after)["harmless"] == 9


def test_what_rose_is_not_worse():
    found = changes({"a": margins(2)}, {"a": margins(17)})
    assert found[0]["p"] < 0.001
    assert not found[0]["worse"]


def test_other_probes_are_not_compared():
    with pytest.raises(ValueError, match="expected probes of"):
        changes({"a": margins(2)}, {"b": margins(2)})
    with pytest.raises(ValueError, match="shorter"):
        changes({"a": margins(2)}, {"a": margins(2, 19)})


def test_holm_by_hand():
    # 0.01 <= 0.05/4, 0.016 <= 0.05/3, 0.03 > 0.05/2: from there on nothing is clear
    assert holm([0.03, 0.01, 0.04, 0.016]) == [False, True, False, True]
    assert holm([0.013, 0.013]) == [True, True]


@pytest.mark.parametrize("ability", [0.0, 1.0, 2.0])
def test_a_stage_that_changes_nothing_is_rarely_named(ability: float):
    """Every question's margin moves, up as often as down: whoever is named is named by chance."""
    draw, named, stages = random.Random(0), 0, 1000
    for _ in range(stages):
        before = {group: [draw.gauss(ability, 1) for _ in range(EACH)] for group in GROUPS}
        after = {group: [draw.gauss(ability, 1) for _ in range(EACH)] for group in GROUPS}
        named += any(each["worse"] for each in changes(before, after))
    assert named / stages < ALPHA / 2  # two-sided, and only what is worse is named


def test_a_stage_that_unlearns_a_group_is_mostly_named():
    draw, named = random.Random(0), 0
    for _ in range(200):
        before = {group: [draw.gauss(1.6, 1) for _ in range(EACH)] for group in GROUPS}
        after = before | {"harmless": [draw.gauss(-0.8, 1) for _ in range(EACH)]}
        named += any(each["worse"] for each in changes(before, after))
    assert named / 200 > 0.8
