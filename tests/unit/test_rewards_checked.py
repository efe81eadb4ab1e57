"""What a reward returns, checked and counted."""

import asyncio
import itertools
from functools import partial

import numpy as np
import pytest
import torch

from toolkit.errors import DataError, TrainingError
from toolkit.rewards import OnError, checked, checked_all, get

PROMPTS = ["What is 5 + 3?\nThink first.", "What is 2 + 2?"]


def gives(values):
    def mine(prompts, completions, **columns):
        return values

    return mine


def failure(function, prompts=PROMPTS):
    with pytest.raises(TrainingError) as caught:
        checked(function)(prompts=prompts, completions=["a"] * len(prompts))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0.5], [1.0, 0.5]), ((True, None), [1.0, None]), (np.array([1, 2]), [1.0, 2.0]),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]), ([torch.tensor(1), np.float32(2)], [1.0, 2.0]),
        ((value for value in (1, 2)), [1.0, 2.0]),
    ],
)  # fmt: skip
def test_numbers_and_none_pass(values, expected):
    reward = checked(gives(values))
    found = reward(prompts=PROMPTS, completions=["a", "b"])
    assert found == expected
    assert all(value is None or type(value) is float for value in found)
    assert (reward.calls, reward.rows, reward.unscored) == (1, 2, expected.count(None))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], "reward mine must return one number per completion: expected 2, found 1"),
        ([1.0] * 3, "expected 2, found 3"),
        ([], "expected 2, found 0"),
        (None, "must return a list of 2 numbers, one per completion, found None"),
        (1.0, "found float 1.0"),
        ("11", "found the text '11'"),
        (
            [1.0, float("nan")],
            "found float nan for completion 2 of 2, whose prompt begins 'What is",
        ),
        ([float("-inf"), 1.0], "found float -inf for completion 1 of 2"),
        ([1.0, "1"], "found the text '1' for completion 2 of 2"),
        ([1.0, [1.0]], "found list [1.0] for completion 2"),
        ([10**400, 1.0], "found int"),
        ([1.0, 2j], "found complex 2j for completion 2"),
        ([1.0, torch.ones(2)], "found Tensor tensor([1., 1.]) for completion 2"),
        (
            [1.0, type("Odd", (), {"__float__": lambda self: 1 / 0, "__repr__": None})()],
            "found Odd",
        ),
        (True, "found bool True"),
        (torch.ones(2, 1), "found list [1.0] for completion 1"),
        (torch.tensor(1.0), "found float 1.0"),
        ({1.0, 2.0}, "found set {1.0, 2.0}"),
        ({"a": 1.0, "b": 2.0}, "found dict"),
        ((1.0 for _ in range(9)), "expected 2, found more"),
        (itertools.count(), "expected 2, found more"),
        ((1.0 for _ in range(1)), "expected 2, found 1"),
        (asyncio.sleep(0), "found coroutine"),
        ([1e39, 1.0], "found float 1e+39"),
    ],
)
def test_what_is_no_list_of_numbers(values, words):
    assert words in failure(gives(values))


def test_a_reward_that_raises():
    def mine(prompts, completions, **columns):
        return [len(None) for _ in prompts]

    words = failure(mine)
    assert words.startswith("reward mine raised TypeError: object of type 'NoneType' has no len()")
    assert "test_rewards_checked.py:" in words
    assert "in a batch of 2 whose first prompt begins 'What is 5 + 3? Think first.'" in words
    chat = [[{"role": "system", "content": "x"}, {"role": "user", "content": "Hi " * 99}]]
    assert f"begins '{'Hi ' * 19}Hi…'" in failure(mine, prompts=chat)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (SystemExit(0), "raised SystemExit: 0 (test_rewards_checked.py:"),
        (MemoryError(), "raised MemoryError:"),
        (RecursionError("deep"), "raised RecursionError: deep"),
        (StopIteration(5), "raised StopIteration: 5"),
        (asyncio.CancelledError(), "raised CancelledError"),
        (ValueError("a\ud800\0\x1b[2Jb"), r"raised ValueError: a\ud800\x00\x1b[2Jb"),
        (type("Odd", (Exception,), {"__str__": None})(), "raised Odd: without words"),
    ],
)
@pytest.mark.parametrize("sort", ["called", "awaited", "gone through"])
def test_whatever_is_raised_is_one_line(raised, words, sort):
    def mine(prompts, completions, **columns):
        raise raised

    async def later(prompts, completions, **columns):
        raise raised

    def one_by_one(prompts, completions, **columns):
        yield 1.0
        raise raised

    if isinstance(raised, StopIteration) and sort != "called":
        words = "raised RuntimeError"  # Python's own
    function = {"called": mine, "awaited": later, "gone through": one_by_one}[sort]
    reward = checked(function, name="mine")

    def call():
        found = reward(prompts=PROMPTS, completions=["a", "b"])
        return asyncio.run(found) if sort == "awaited" else found

    with pytest.raises(TrainingError) as caught:
        call()
    assert f"reward mine {words}" in str(caught.value)
    assert str(caught.value).isprintable()


def test_ctrl_c_ends_a_run_and_is_no_failure():
    def mine(prompts, completions, **columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(mine, on_error=OnError("skip"))(prompts=PROMPTS, completions=["a", "b"])


def test_a_reward_with_another_signature():
    words = failure(lambda completions: [1.0])
    assert "unexpected keyword argument 'prompts'" in words
    assert "called as f(prompts=…, completions=…, **columns)" in words


def test_a_message_that_is_one_line_already_stays():
    with pytest.raises(DataError, match="reward answer: there is no column 'answer'; found gold"):
        checked(get("answer"))(prompts=[""], completions=[""], gold=["5"], completion_ids=[[1]])


def test_an_async_reward_stays_one():
    from trl.trainer.utils import get_callable_name, is_async_callable

    async def judge(prompts, completions, **columns):
        await asyncio.sleep(0)
        if completions == ["bad"]:
            raise KeyError("verdict")
        return [1.0 for _ in completions]

    class Judge:
        async def __call__(self, prompts, completions, **columns):
            return [2.0]

    reward = checked(judge)
    assert is_async_callable(reward)
    assert not is_async_callable(checked(gives([1.0])))
    assert get_callable_name(reward) == "judge"
    assert asyncio.run(reward(prompts=[""], completions=["a"])) == [1.0]
    assert asyncio.run(checked(Judge())(prompts=[""], completions=["a"])) == [2.0]
    with pytest.raises(TrainingError, match="reward judge raised KeyError: 'verdict'"):
        asyncio.run(reward(prompts=[""], completions=["bad"]))
    with pytest.raises(TrainingError, match="expected 2, found 1"):
        asyncio.run(reward(prompts=["", ""], completions=["a"]))


def test_the_share_that_could_not_be_scored_is_logged():
    logged = []
    reward = checked(gives([None, 1.0]))
    reward(
        prompts=PROMPTS, completions=["a", "b"], log_metric=lambda name, value: logged.append((name, value))
    )  # fmt: skip
    assert logged == [("rewards/mine/unscored", 0.5), ("rewards/mine/zero_spread", 0.0)]


def told_by(batches):
    told = []
    values = iter(batches)

    def mine(prompts, completions, **columns):
        return next(values)

    reward = checked(mine, tell=told.append)
    for batch in batches:
        reward(prompts=[""] * len(batch), completions=[""] * len(batch))
    return reward, told


def test_a_constant_reward_is_told_once():
    reward, told = told_by([[0.0] * 64] * 25)
    assert len(told) == 1
    assert told[0].startswith(
        "reward mine gave 0 to all 640 completions so far: no learning signal"
    )
    assert reward.constant == 25


def test_a_reward_that_scores_nothing_is_told_once():
    reward, told = told_by([[None] * 64] * 25)
    assert told == [
        "reward mine could score none of 640 completions so far: look at the column that it reads"
    ]
    assert (reward.rows, reward.unscored, reward.constant) == (1600, 1600, 0)


def test_a_reward_that_becomes_constant():
    _, told = told_by([[0.0, 1.0]] * 5 + [[1.0, None, 1.0]] * 10)
    assert len(told) == 1
    assert "gave 1 to all 30 completions of its last 10 batches" in told[0]


def test_a_reward_that_only_tells_batches_apart():
    reward, told = told_by([[0.0] * 8, [1.0] * 8] * 10)
    assert reward.constant == 20
    assert len(told) == 1
    assert "all completions of a batch one value, in each of its last 10 batches" in told[0]


@pytest.mark.parametrize(
    "batches",
    [
        [[0.0] * 8] * 9 + [[1.0, 0.0]] + [[0.0] * 8] * 9,  # a difference in between
        [[0.0]] * 50,  # a batch of one is always constant
    ],
)
def test_what_is_not_constant(batches):
    assert told_by(batches)[1] == []


def test_two_of_one_name():
    rewards = checked_all(
        [get("length", target=5), get("length", target=9), partial(gives([1]), x=1)]
    )
    assert [reward.__name__ for reward in rewards] == ["length", "length_2", "mine"]
