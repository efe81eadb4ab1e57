"""Rewards that hang, and failures that are skipped and counted up to a bound."""

import asyncio
import contextlib
import math
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from toolkit.errors import DataError, TrainingError
from toolkit.rewards import OnError, checked
from toolkit.rewards.time_limit import Cut, time_limit

PROMPTS = ["1 + 1?", "2 + 2?", "3 + 3?", "4 + 4?"]


def call(reward, prompts=PROMPTS, **columns):
    found = reward(prompts=prompts, completions=["x"] * len(prompts), **columns)
    return asyncio.run(found) if asyncio.iscoroutine(found) else found


def forever(prompts, **columns):
    while True:
        pass


def asleep(prompts, **columns):
    time.sleep(60)


def waiting(prompts, **columns):
    threading.Event().wait()


def stubborn(prompts, **columns):
    while True:
        with contextlib.suppress(Exception):  # which is not what is raised
            time.sleep(60)


def backtracking(prompts, **columns):
    return [float(bool(re.match(r"(a+)+$", "a" * 60 + "b"))) for _ in prompts]


def endless_numbers(prompts, **columns):
    while True:
        time.sleep(0.01)
        if False:
            yield 1.0


async def asleep_async(prompts, **columns):
    await asyncio.sleep(60)


HANGING = [forever, asleep, waiting, stubborn, backtracking, endless_numbers, asleep_async]


@pytest.mark.parametrize("function", HANGING)
def test_a_reward_that_hangs_is_cut(function):
    threads = threading.active_count()
    started = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        call(checked(function, on_error=OnError(seconds=0.3)))
    assert time.monotonic() - started < 20
    assert str(caught.value) == (
        f"reward {function.__name__} took over 0.3 s for one call and was cut: give it more time "
        "with reward_timeout, or look at what it waits for"
    )
    assert threading.active_count() == threads, "no thread is left"


@pytest.mark.parametrize("function", [forever, asleep_async])
def test_a_cut_call_is_counted_and_later_ones_are_scored(function):
    hangs = iter([False, True, False])

    def mine(prompts, **columns):
        return function(prompts) if next(hangs) else [1.0] * len(prompts)

    async def later(prompts, **columns):
        return await function(prompts) if next(hangs) else [1.0] * len(prompts)

    told = []
    kind = later if asyncio.iscoroutinefunction(function) else mine
    reward = checked(kind, tell=told.append, on_error=OnError("skip", seconds=0.3))
    assert [call(reward) for _ in range(3)] == [[1.0] * 4, [None] * 4, [1.0] * 4]
    assert (reward.calls, reward.rows, reward.failed, reward.unscored) == (3, 12, 4, 0)
    assert len(told) == 1
    assert "took over 0.3 s" in told[0]


def test_in_another_thread_too():
    found = []

    def run():
        try:
            call(checked(forever, on_error=OnError(seconds=0.3)))
        except TrainingError as error:
            found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert found
    assert "took over 0.3 s" in found[0]


def test_rewards_at_the_same_time_have_each_their_own_time():
    threads = threading.active_count()
    found = {}

    def slow(prompts, **columns):
        time.sleep(1)
        return [1.0] * len(prompts)

    async def slow_async(prompts, **columns):
        await asyncio.sleep(1)
        return [1.0] * len(prompts)

    def run(name, function, seconds):
        reward = checked(function, tell=str, on_error=OnError("skip", 1.0, seconds))
        found[name] = call(reward)

    async def together():
        one = checked(slow_async, on_error=OnError(seconds=30.0))
        other = checked(asleep_async, tell=str, on_error=OnError("skip", 1.0, 0.3))
        return await asyncio.gather(*(each(PROMPTS, ["x"] * 4) for each in (one, other)))

    others = [
        threading.Thread(target=run, args=("cut", forever, 0.3)),
        threading.Thread(target=run, args=("slow", slow, 30.0)),
        threading.Thread(target=lambda: found.update(together=asyncio.run(together()))),
    ]
    for thread in others:
        thread.start()
    run("main", slow, 30.0)
    run("main is cut", asleep, 0.3)
    for thread in others:
        thread.join()
    nothing, ones = [None] * 4, [1.0] * 4
    assert found == {
        "cut": nothing, "slow": ones, "together": [ones, nothing], "main": ones,
        "main is cut": nothing,
    }  # fmt: skip
    assert threading.active_count() == threads


def test_a_time_limit_leaves_others_alone():
    threads = threading.active_count()
    with time_limit(5.0, "mine"):
        time.sleep(0.01)
    with pytest.raises(Cut), time_limit(0.1, "mine"):
        time.sleep(60)
    time.sleep(0.2)  # nothing comes late
    with time_limit(None, "mine"):
        assert threading.active_count() == threads


STOPPED = """
import os, signal, time
from toolkit.rewards import OnError, checked
def mine(prompts, **columns):
    print("in it", flush=True)
    time.sleep(0.5)
    return [1.0]
print(checked(mine, on_error=OnError(seconds=4.0))(prompts=[""], completions=[""]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="nothing stops a process here")
def test_time_in_which_the_process_was_stopped_does_not_count():
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in it\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.5)
        process.send_signal(signal.SIGCONT)
        assert process.communicate() == ("[1.0]\n", "")


UNSTOPPABLE = """
import sys, time
from toolkit.rewards import OnError, checked, time_limit
time_limit.AGAIN, time_limit.GRACE = 0.05, 0.3
def sync(prompts, **columns):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
async def later(prompts, **columns):
    time.sleep(60)
import asyncio
reward = checked({name}, on_error=OnError(seconds=0.1))
found = reward(prompts=[""], completions=[""])
asyncio.run(found)
"""


@pytest.mark.parametrize("name", ["sync", "later"])
def test_what_cannot_be_ended_ends_the_process(name):
    done = subprocess.run(
        [sys.executable, "-c", UNSTOPPABLE.format(name=name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == TrainingError.exit_code
    assert done.stderr.startswith(
        f"error: reward {name} took over 0.1 s (reward_timeout) and cannot"
    )
    assert len(done.stderr.splitlines()) == 1


def fails_at(which, how):
    """A reward whose call number `which` does something else."""
    calls = iter(range(10**6))

    def mine(prompts, **columns):
        return how(prompts) if next(calls) in which else [0.5] * len(prompts)

    return mine


@pytest.mark.parametrize(
    ("how", "expected", "words"),
    [
        (lambda prompts: 1 / 0, [None] * 4, "raised ZeroDivisionError"),
        (lambda prompts: sys.exit(3), [None] * 4, "raised SystemExit: 3"),
        (lambda prompts: None, [None] * 4, "found None"),
        (lambda prompts: [1.0], [None] * 4, "expected 4, found 1"),
        (lambda prompts: [1, math.inf, None, "no"], [1.0, None, None, None], "found float inf for"),
        (lambda prompts: [math.nan, 1, 1, 1], [None, 1.0, 1.0, 1.0], "found float nan for"),
    ],
)
def test_a_failure_is_skipped_told_and_counted(how, expected, words):
    told, logged = [], []
    reward = checked(fails_at({1}, how), tell=told.append, on_error=OnError("skip"))
    for wanted in ([0.5] * 4, expected, [0.5] * 4):
        assert call(reward, log_metric=lambda *pair: logged.append(pair)) == wanted
    given = how(PROMPTS) if "float" in words else []
    failed = expected.count(None) - list(given).count(None)
    assert (reward.rows, reward.failed, reward.unscored) == (
        12,
        failed,
        expected.count(None) - failed,
    )
    assert sum(reward.counts().values()) == 12
    (line,) = told
    assert line.startswith("reward mine ")
    assert words in line
    assert line.endswith("; left out and counted, as all that follow (on_reward_error: skip)")
    shares = [value for name, value in logged if name == "rewards/mine/failed"]
    assert shares == [0, failed / 4, 0]


def test_too_many_failures_end_training():
    reward = checked(
        fails_at(range(1000), lambda prompts: 1 / 0), tell=lambda _: None,
        on_error=OnError("skip", most=0.05),
    )  # fmt: skip
    for _ in range(5):
        assert call(reward) == [None] * 4
    with pytest.raises(TrainingError) as caught:
        call(reward)
    assert str(caught.value).startswith("reward mine raised ZeroDivisionError: division by zero (")
    assert str(caught.value).endswith(
        "it failed for 24 of 24 completions in its last 6 calls, and max_reward_errors allows 0.05 "
        "of 100 calls"
    )


def test_the_bound_is_a_share_of_the_last_hundred_calls():
    rare = checked(fails_at(set(range(0, 2000, 25)), lambda prompts: 1 / 0), tell=lambda _: None,
                   on_error=OnError("skip", most=0.05))  # fmt: skip
    for _ in range(600):
        call(rare)
    assert rare.failed == 24 * 4
    late = checked(fails_at(set(range(500, 2000)), lambda prompts: 1 / 0), tell=lambda _: None,
                   on_error=OnError("skip", most=0.05))  # fmt: skip
    for _ in range(505):
        call(late)
    with pytest.raises(TrainingError, match="failed for 24 of 400 completions in its last 100"):
        call(late)
    assert late.calls == 506


def test_no_failure_at_all_is_allowed_with_a_bound_of_0():
    reward = checked(fails_at({3}, lambda p: [1, 1, 1, math.nan]), tell=lambda _: None,
                     on_error=OnError("skip", most=0.0))  # fmt: skip
    for _ in range(3):
        call(reward)
    with pytest.raises(TrainingError, match="failed for 1 of 16 completions"):
        call(reward)


def test_what_is_wrong_with_the_data_is_never_skipped():
    def mine(prompts, **columns):
        raise DataError("there is no column 'answer'")

    with pytest.raises(DataError, match="no column"):
        call(checked(mine, on_error=OnError("skip")))
