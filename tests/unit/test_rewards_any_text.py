"""No text whatever makes a reward raise, or return anything but a number or None."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.rewards import get

CHOICES = ["cat", "dog"]
REWARDS = {
    "a number": (get("answer"), {"answer": "18"}),
    "mathematics": (get("answer"), {"answer": r"\frac{\sqrt{3}}{2}"}),
    "words": (get("answer", checker="exact"), {"answer": "Paris"}),
    "a choice": (get("choice"), {"answer": "B", "choices": CHOICES}),
    "tags": (get("format", tags=["think", "answer"]), {}),
    "a pattern": (get("format", regex=r"(a+)+\d?"), {}),
    "a schema": (get("format", json_schema={"type": "object"}), {}),
    "a length": (get("length", target=5), {}),
    "too long": (get("length", max_completion_len=5, soft_punish_cache=2), {}),
    "repetition": (get("repetition"), {}),
    "a language": (get("language", language="en"), {}),
}
PIECES = (
    "\\boxed{", "}", "{", "$", "\\frac", "^", "9", "18", "#### ", "answer is ", "<think>", "</think>",
    "<answer>", "</answer>", "```json\n", "\n```", '"a": ', "[", "x", "\\", "A: ", "not ", "B) ", " or ",
    "\\sqrt", "\\text{", "!", "²", "\ud800", "\0", "=", ",", "(", "\\left", "√", "cat", "\n",
)  # fmt: skip
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def scores(name, text):
    reward, row = REWARDS[name]
    columns = {key: [value, value] for key, value in row.items()}
    chat = [{"role": "assistant", "content": text}]
    return reward(prompts=["…", "…"], completions=[text, chat], **columns)


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
def test_any_completion(name, text):
    first, second = scores(name, text)
    assert first == second
    assert isinstance(first, float)
    assert math.isfinite(first)


@pytest.mark.parametrize("name", ["a number", "words", "a choice"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    gold=TEXTS | st.none() | st.integers() | st.floats() | st.booleans() | st.lists(st.text(max_size=9))
)  # fmt: skip
def test_any_gold_answer(name, gold):
    reward, row = REWARDS[name]
    columns = {key: [value] for key, value in {**row, "answer": gold}.items()}
    found = reward(prompts=["…"], completions=["The answer is 18"], **columns)
    assert found[0] in (0.0, 1.0, None)
