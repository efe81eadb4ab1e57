"""Async rewards that begin while a rollout is still sampled: what they see, and what comes of it."""

import asyncio
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig
from trl import GRPOTrainer
from trl.trainer.utils import shutdown_event_loop_in_daemon, start_event_loop_in_daemon

import toolkit
from tests import tiny
from tests.tiny_ppo import quiet
from toolkit.errors import TrainingError
from toolkit.rewards.checked import OnError, checked
from toolkit.stages import early_rewards
from toolkit.stages.early_rewards import Early, by_row

pytestmark = quiet
ENDS = [0, *range(150, 257)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One whose completions of random tokens end at about the third."""
    folder = tiny.save_base(tmp_path_factory.mktemp("early") / "base")
    GenerationConfig(eos_token_id=ENDS).save_pretrained(folder)
    return folder


def score(completion_ids, mark):
    return [sum(ids) % 7 + at for ids, at in zip(completion_ids, mark, strict=True)]


class Judge:
    """An async reward that keeps what it was asked, and whether the model was sampling then."""

    def __init__(self, row_by_row):
        self.row_by_row, self.asked, self.others = row_by_row, [], set()

    async def __call__(self, prompts, completions, completion_ids, mark, log_extra, **columns):
        assert {"trainer_state", "log_metric"} <= columns.keys()
        self.others |= {frozenset(columns)}
        self.asked.append((prompts, completions, completion_ids, mark))
        log_extra("mark", [f"m{each}" for each in mark])
        columns["log_metric"]("judged", 1.0)
        await asyncio.sleep(0)
        return score(completion_ids, mark)

    def rows(self):
        return sorted(str(row) for each in self.asked for row in zip(*each, strict=True))


def learn(base, folder, reward, stage="grpo", **keys):
    talks = {"prompt": [[{"role": "user", "content": f"Q{'u' * n}"}] for n in range(4)]}
    texts = {"prompt": [f"Question {'ab' * n}" for n in range(4)]}
    columns = talks if keys.pop("talks", False) else texts
    rows = [{"prompt": prompt, "mark": n} for n, prompt in enumerate(columns["prompt"])]
    settings = {
        "model_name_or_path": str(base), "train_dataset": rows, "reward_funcs": [reward],
        "output_dir": str(folder), "lora_r": 4, "learning_rate": 1e-2, "max_steps": 2,
        "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 12, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "num_iterations": 1, "seed": 1, "guard": "none",
    } | keys  # fmt: skip
    return getattr(toolkit, stage)(**settings)


@pytest.fixture
def extra(monkeypatch):
    """What TRL's table of completions is given beside them, with the completions."""
    held, log = [], GRPOTrainer.log

    def keep(self, logs, *args):
        held.append({k: list(v) for k, v in self._logs["extra"].items()})
        return log(self, logs, *args)

    monkeypatch.setattr(GRPOTrainer, "log", keep)
    return held


@pytest.mark.parametrize(("stage", "talks"), [("grpo", False), ("grpo", True), ("ppo", False)])
def test_what_is_learnt_is_the_same_to_the_bit(base, tmp_path, stage, talks, extra):
    late, early = Judge(False), Judge(True)
    results = [
        learn(base, tmp_path / name, judge, stage, talks=talks)
        for name, judge in (("late", late), ("early", early))
    ]
    assert len(late.asked) < len(early.asked)
    assert early.others == late.others
    assert (
        early.rows() == late.rows()
    )  # each row once, with the prompt and the columns that are its
    weights = [(r.output_dir / "adapter_model.safetensors").read_bytes() for r in results]
    assert weights[0] == weights[1]
    of = [entry for entry in results[0].metrics if entry.startswith("rewards/Judge")]
    assert of
    assert all(results[0].metrics[key] == results[1].metrics[key] for key in of)
    half = len(extra) // 2
    assert extra[:half] == extra[half:]
    assert extra[-1]["mark"]


def test_a_reward_is_asked_while_others_are_sampled(base, tmp_path, monkeypatch):
    sampling, seen = threading.Event(), []
    turn = GRPOTrainer._generate_single_turn

    def watched(self, *args, **kwargs):
        sampling.set()
        try:
            found = turn(self, *args, **kwargs)
            time.sleep(1)  # the other thread may be slow to begin
            return found
        finally:
            sampling.clear()

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", watched)

    async def judge(completion_ids, mark, **columns):
        seen.append((sampling.is_set(), len(mark)))
        return score(completion_ids, mark)

    judge.row_by_row = True
    learn(base, tmp_path, partial(judge), max_steps=1)
    assert any(early for early, _ in seen)
    assert not seen[-1][0]  # the last to end are asked about where TRL asks
    assert sum(rows for _, rows in seen) == 8


def test_slow_sampling_finds_the_answers_there(base, tmp_path, monkeypatch):
    """An answer that takes as long as a rollout has come before TRL asks for it."""
    waited = []
    call = Early.__call__

    async def timed(self, **given):
        waited.append([future.done() for *_, future in self.begun])
        return await call(self, **given)

    monkeypatch.setattr(Early, "__call__", timed)
    learn(base, tmp_path, Judge(True), max_steps=1)
    assert any(waited[0])


@pytest.mark.parametrize("fast", [True, False])
def test_only_a_reward_that_says_so_begins_early(base, tmp_path, monkeypatch, fast):
    monkeypatch.setattr(early_rewards, "by_row", lambda function: fast and by_row(function))
    judge = Judge(not fast)
    learn(base, tmp_path, judge, max_steps=1)
    assert len(judge.asked) == 1


def test_what_says_so():
    async def alone(**given): ...

    alone.row_by_row = True
    judge = SimpleNamespace(row_by_row="yes")
    assert [by_row(each) for each in (alone, partial(partial(alone), a=1), judge, len)] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("error", [ValueError("no such judge"), SystemExit(3)], ids=repr)
def test_an_error_ends_training_with_the_line_it_always_had(base, tmp_path, error):
    async def judge(completion_ids, **columns):
        raise error

    lines = []
    for row_by_row in (False, True):
        judge.row_by_row = row_by_row
        with pytest.raises(TrainingError) as caught:
            learn(base, tmp_path / str(row_by_row), judge)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert type(error).__name__ in lines[1]


@pytest.mark.parametrize("given", [None, [1.0] * 99], ids=["nothing", "too many"])
def test_a_wrong_answer_ends_training(base, tmp_path, given):
    async def judge(completion_ids, **columns):
        return given

    judge.row_by_row = True
    with pytest.raises(TrainingError, match=r"reward judge must return"):
        learn(base, tmp_path, judge)


@pytest.fixture
def loop():
    thread, loop, ready = start_event_loop_in_daemon("early")
    ready.wait()
    yield loop
    shutdown_event_loop_in_daemon(thread, loop)


def rows_of(number, first=10):
    ids = [[first + row] for row in range(number)]
    return {
        "prompts": list("abcdef"[:number]),
        "completions": [str(i) for i in ids],
        "completion_ids": ids,
    }


def asked_of(early, loop, **given):
    return asyncio.run_coroutine_threadsafe(early(**given), loop).result(10)


def test_only_what_trl_asks_is_taken_from_what_was_begun(loop):
    calls = []

    async def judge(prompts, completion_ids, mark, **columns):
        calls.append(prompts)
        return [ids[0] + at for ids, at in zip(completion_ids, mark, strict=True)]

    early, given = Early(judge, loop), rows_of(4)
    some = {key: [value[row] for row in (2, 0)] for key, value in given.items()}
    early.begin([2, 0], some, {"mark": [200, 0]})
    other = rows_of(1, first=99) | {"prompts": ["d"]}
    early.begin([3], other, {"mark": [300]})
    mark = [0, 100, 200, 300]
    assert asked_of(early, loop, **given, mark=mark) == [10, 111, 212, 313]
    assert calls[2:] == [["b", "d"]]


def test_what_nobody_asks_for_is_ended(loop):
    began, ended = threading.Event(), threading.Event()

    async def judge(**given):
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    early = Early(judge, loop)
    early.begin([0], rows_of(1), {})
    assert began.wait(10)
    early.forget()
    assert ended.wait(10)
    assert not early.begun


def test_a_call_that_takes_too_long_is_cut_wherever_it_began(loop):
    ended = threading.Event()

    async def judge(**given):
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    early = Early(judge, loop)
    reward = checked(judge, on_error=OnError(seconds=0.2))
    reward.function = early
    early.begin([0], rows_of(1), {})
    with pytest.raises(TrainingError, match=r"took over 0\.2 s"):
        asked_of(reward, loop, **rows_of(2))
    assert ended.wait(10)


def test_what_is_logged_beside_stands_at_its_row(loop):
    async def judge(prompts, log_extra, **given):
        if "c" not in prompts:
            log_extra("seen", [each.upper() for each in prompts])
        return [0.0] * len(prompts)

    early, given, logged = Early(judge, loop), rows_of(4), []
    for row in (1, 2):
        early.begin([row], {key: [value[row]] for key, value in given.items()}, {})
    asked_of(early, loop, **given, log_extra=lambda *entry: logged.append(entry))
    assert logged == [("seen", ["A", "B", None, "D"])]


@pytest.mark.parametrize(
    "changed",
    [{"use_vllm": True}, {"use_transformers_continuous_batching": True}, {"tools": [len]},
     {"environment_factories": {None: len}}, {"rollout_func": len}, {"reward_funcs": []},
     {"accelerator": SimpleNamespace(num_processes=2)},
     {"_tokenizer": SimpleNamespace(response_schema={"a": 1})}],
    ids=str,
)  # fmt: skip
def test_elsewhere_rewards_are_left_alone(changed):
    async def judge(**given): ...

    judge.row_by_row = True
    reward = checked(judge)
    trainer = SimpleNamespace(**{
        "use_vllm": False, "use_transformers_continuous_batching": False, "tools": None,
        "environment_factories": None, "rollout_func": None, "reward_funcs": [reward],
        "accelerator": SimpleNamespace(num_processes=1), "_tokenizer": SimpleNamespace(),
        "async_loop": None, "_generate_and_score_completions": len,
    } | changed)  # fmt: skip
    assert early_rewards.early_rewards(trainer) is None
    assert reward.function is judge
