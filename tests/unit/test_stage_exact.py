"""A run that goes on from any of its checkpoints ends, to the bit, as the one that nothing broke."""

import json
import shutil

import pytest
import torch

import toolkit
from tests import tiny
from tests.preferences import PAIRS
from tests.tiny_ppo import odd, quiet
from tests.unit.test_stage_resume import interrupt

pytestmark = quiet
COMMON = {
    "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, "report_to": "none",
    "logging_steps": 1, "lora_r": 4, "lora_dropout": 0.1, "per_device_train_batch_size": 4,
    "max_steps": 8, "seed": 3,
}  # fmt: skip
CHATS = COMMON | {"train_dataset": tiny.ROWS[:12]}  # three steps an epoch
PROMPTS = [{"prompt": f"{'ab' * (index % 4)}{index}"} for index in range(8)]
ROLLOUTS = COMMON | {
    "train_dataset": PROMPTS, "reward_funcs": [odd], "max_completion_length": 4, "lora_dropout": 0.0,
    "num_generations": 2, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 9, "beta": 0.1,
}  # fmt: skip
WHOLE = {"lora_r": None, "lora_dropout": None, "use_peft": False, "learning_rate": 1e-3}
# per case: the stage, its keys, and the steps after which it is cut off
CASES = {
    "sft": ("sft", CHATS, (2, 3, 7)),
    "packed": ("sft", CHATS | {"packing": True, "max_length": 64, "gradient_accumulation_steps": 2,
                               "per_device_train_batch_size": 2}, (3, 6)),
    "by length": ("sft", CHATS | {"train_sampling_strategy": "group_by_length"}, (2, 4, 7)),
    "grpo": ("grpo", ROLLOUTS, (4, 7)),
    "ppo": ("ppo", ROLLOUTS, (5, 8)),
}  # fmt: skip
SLOW = {
    "whole": ("sft", {k: v for k, v in (CHATS | WHOLE).items() if v is not None}, (1, 4, 6)),
    "accumulated": ("sft", CHATS | {"gradient_accumulation_steps": 2,
                                    "per_device_train_batch_size": 2}, (1, 3, 5)),
    "reward": ("reward", COMMON | {"train_dataset": PAIRS[:12]}, (2, 3, 7)),
    "dpo": ("dpo", COMMON | {"train_dataset": PAIRS[:12]}, (2, 3, 7)),
    "one rollout a step": ("grpo", ROLLOUTS | {"num_iterations": 1, "gradient_accumulation_steps": 2,
                                               "per_device_train_batch_size": 2}, (1, 4, 6)),
    "grpo measured": ("grpo", ROLLOUTS | {"eval_dataset": PROMPTS[:4], "eval_strategy": "epoch"},
                      (2, 8)),
    "every ppo": ("ppo", ROLLOUTS | {"gradient_accumulation_steps": 2,
                                     "per_device_train_batch_size": 2}, tuple(range(1, 9))),
}  # fmt: skip


def weights(run):
    """Every file of weights of a finished stage."""
    files = sorted(run.glob("*.safetensors")) + sorted(run.glob("value/*.safetensors"))
    return {path.relative_to(run): path.read_bytes() for path in files}


def losses(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in lines if "loss" in entry]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_it_ends_as_if_nothing_had_been(case, tiny_base, tmp_path):
    stage, keys, cuts = (CASES | SLOW)[case]
    start = getattr(toolkit, stage)
    run = tmp_path / "run"
    keys = keys | {"model": str(tiny_base), "output_dir": str(run)}
    start(**keys)
    wanted, logged = weights(run), losses(run)
    assert len(wanted) == (2 if stage == "ppo" else 1)
    shutil.copytree(run, tmp_path / "kept")
    for cut in cuts:
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "kept", run)
        interrupt(run, *(f"checkpoint-{step}" for step in range(cut + 1, keys["max_steps"] + 1)))
        torch.manual_seed(cut)  # what was drawn before a start does not count
        start(**keys)
        assert weights(run) == wanted, f"from checkpoint-{cut}"
        assert losses(run) == logged, f"from checkpoint-{cut}"


def test_a_rollout_is_kept_where_one_is_going_on(tiny_base, tmp_path):
    keys = ROLLOUTS | {"model": str(tiny_base), "output_dir": str(tmp_path), "max_steps": 5}
    toolkit.grpo(**keys)
    found = {path.parent.name for path in tmp_path.glob("checkpoint-*/rollout_0.pt")}
    assert found == {f"checkpoint-{step}" for step in (1, 2, 3, 5)}
