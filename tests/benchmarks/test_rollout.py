"""What each thing that a rollout leaves out on a CPU gains, by itself: less than a twentieth, and it goes."""

import asyncio
import statistics
import sys
import time

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import toolkit
from tests.benchmarks.cpu_rows import COMPLETIONS, SHAPES, lengths_of, rows_of
from tests.benchmarks.scaling import words
from toolkit.models import rollout
from toolkit.models.merging import merge_while_generating

pytestmark = pytest.mark.benchmark
SHAPE = SHAPES["22M"]
ROUNDS = 5
END, LONGEST = 0, 128  # the stop token of the base, and tokens
JUDGED = 0.5  # seconds that a service judges a completion, one after the other


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return SHAPE.save(tmp_path_factory.mktemp("base"))


class Ends:
    """Draws that end rows where real ones would: at the quantiles of a log-normal distribution."""

    def __init__(self):
        found = sorted(length // 2 for length, _ in lengths_of(SHAPE, COMPLETIONS))
        self.lengths, self.step, self.draw = torch.tensor(found), 0, rollout.draw

    def __call__(self, scores):
        self.step += 1
        tokens = self.draw(scores).clamp(min=END + 1)
        tokens[self.lengths[-len(scores) :] <= self.step] = END  # the first to end were dropped
        if self.step == self.lengths[-1]:
            self.step = 0
        return tokens


def policy(base, held=torch.float32, **how):
    settings = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=held)
    model = get_peft_model(model, settings).eval()
    merge_while_generating(model, **how)
    return model


def prompts(different):
    draw = torch.Generator().manual_seed(0)
    rows = COMPLETIONS if different else 1
    return torch.randint(10, 8000, (rows, SHAPE.prompt), generator=draw).expand(COMPLETIONS, -1)


def seconds(model, ids, **how):
    """What completions take of the processor."""
    begun = time.process_time()
    given = {"max_new_tokens": LONGEST, "do_sample": True, "pad_token_id": 0} | how
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
    return time.process_time() - begun


def compared(what, one, other):
    """How many times as long the other takes: the median of rounds, in turn."""
    one(), other()  # warm up
    ratios = [other() / one() for _ in range(ROUNDS)]
    least, most, middle = min(ratios), max(ratios), statistics.median(ratios)
    sys.stdout.write(f"\n{what}: {middle:.2f} times as fast [{least:.2f}-{most:.2f}]\n")
    return middle


def test_equal_prompts_are_read_once(base):
    model = policy(base)
    equal, different = (prompts(different=each) for each in (False, True))
    gain = compared("one prefill", lambda: seconds(model, equal), lambda: seconds(model, different))
    assert gain >= 1.05


def test_rows_that_have_ended_are_dropped(base, monkeypatch):
    model, ids = policy(base), prompts(different=False)
    monkeypatch.setattr(rollout, "draw", Ends())

    def at(share):
        monkeypatch.setattr(rollout, "DROP", share)
        return seconds(model, ids, eos_token_id=END, max_new_tokens=1000)

    assert compared("rows dropped", lambda: at(0.25), lambda: at(2)) >= 1.05


def test_a_merged_copy_in_bf16(base):
    ids = prompts(different=False)
    half, full = policy(base, dtype=torch.bfloat16), policy(base)
    gain = compared("bfloat16", lambda: seconds(half, ids), lambda: seconds(full, ids))
    assert gain >= 1.05


def test_a_base_in_bf16_is_merged_too(base):
    ids, half = prompts(different=False), torch.bfloat16
    merged, beside = policy(base, half, dtype=half), policy(base, half)
    gain = compared("base merged", lambda: seconds(merged, ids), lambda: seconds(beside, ids))
    assert gain >= 1.05


def test_the_loop_beside_that_of_transformers(base):
    ids = prompts(different=True)  # it reads all of them
    ours, theirs = policy(base), policy(base, fast=False)
    compared("the loop alone", lambda: seconds(ours, ids), lambda: seconds(theirs, ids))


def test_rewards_begin_early(base, tmp_path, monkeypatch):
    """By the clock: a service that judges one completion after the other does so meanwhile."""
    monkeypatch.setattr(rollout, "draw", Ends())

    def trained(early):
        one_by_one, asked = asyncio.Lock(), []

        async def judge(completions, **_):
            asked.append(len(completions))
            for _ in completions:
                async with one_by_one:
                    await asyncio.sleep(JUDGED)
            return [float(len(text)) for text in completions]

        judge.row_by_row = early
        trainer = toolkit.build(
            "grpo", model_name_or_path=str(base), reward_funcs=[judge], max_steps=2,
            train_dataset=Dataset.from_list(rows_of("grpo", SHAPE, 2, words())), lora_r=16,
            per_device_train_batch_size=COMPLETIONS, num_generations=COMPLETIONS,
            max_completion_length=256, output_dir=str(tmp_path / str(early)), save_strategy="no",
        )  # fmt: skip
        begun = time.perf_counter()
        trainer.train()
        assert asked == ([1] * 2 * COMPLETIONS if early else [COMPLETIONS] * 2)
        return time.perf_counter() - begun

    gain = compared("rewards that begin early", lambda: trained(True), lambda: trained(False))
    assert gain >= 1.05
