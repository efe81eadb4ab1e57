"""A run that goes on from any of its checkpoints ends, to the bit, as the one that nothing broke."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import toolkit
from tests import tiny
from tests.preferences import PAIRS
from tests.tiny_ppo import odd, quiet
from tests.unit import test_stage_pretrain
from tests.unit.test_stage_resume import interrupt
from toolkit.errors import TrainingError
from toolkit.stages import position

pytestmark = quiet
COMMON = {
    "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, "report_to": "none",
    "logging_steps": 1, "lora_r": 4, "lora_dropout": 0.1, "per_device_train_batch_size": 4,
    "max_steps": 5, "seed": 3,
}  # fmt: skip
CHATS = COMMON | {"train_dataset": tiny.ROWS[:12]}  # three steps an epoch
TWO = COMMON | {"train_dataset": PAIRS[:12]}
PROMPTS = [{"prompt": f"{'ab' * (index % 4)}{index}"} for index in range(8)]
ROLLOUTS = COMMON | {
    "train_dataset": PROMPTS, "reward_funcs": [odd], "max_completion_length": 4, "lora_dropout": 0.0,
    "num_generations": 2, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 6, "beta": 0.1,
}  # fmt: skip
# per case: the stage, its keys, and the steps after which it is cut off
CASES = {
    "sft": ("sft", CHATS, (2, 3, 4)),  # within an epoch, at its end, within the second
    "reward": ("reward", TWO, (4,)),
    "dpo": ("dpo", TWO, (4,)),
    "grpo": ("grpo", ROLLOUTS, (5,)),  # within a rollout
    "ppo": ("ppo", ROLLOUTS, (5,)),
}  # fmt: skip

# All steps of more than two epochs.
WHOLE = {"lora_r": None, "lora_dropout": None, "use_peft": False, "learning_rate": 1e-3}
HALVES = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
PACKED = HALVES | {"packing": True, "max_length": 256}
FOLLOWED = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
TEXTS = {
    **{key: value for key, value in COMMON.items() if not key.startswith("lora")},
    "train_dataset": test_stage_pretrain.TEXTS[:20], "config_overrides": test_stage_pretrain.SMALL,
    "vocab_size": 300, "max_length": 32,
}  # fmt: skip
MORE = {
    "sft": ("sft", CHATS),
    "sft whole": ("sft", CHATS | WHOLE),
    "packed": ("sft", CHATS | PACKED),
    "packed whole": ("sft", CHATS | PACKED | WHOLE),
    "packed wrapped": ("sft", CHATS | PACKED | {"packing_strategy": "wrapped"}),
    "accumulated": ("sft", CHATS | HALVES),
    "by length": ("sft", CHATS | {"train_sampling_strategy": "group_by_length"}),
    "pretrain": ("pretrain", TEXTS),
    "reward": ("reward", TWO),
    "reward whole": ("reward", TWO | WHOLE),
    "dpo": ("dpo", TWO),
    "dpo whole": ("dpo", TWO | WHOLE | FOLLOWED),
    "grpo": ("grpo", ROLLOUTS),
    "grpo, one rollout a step": ("grpo", ROLLOUTS | HALVES | {"num_iterations": 1}),
    "grpo, four steps a rollout": ("grpo", ROLLOUTS | {"num_iterations": 1, "steps_per_generation": 4}),
    "grpo measured": ("grpo", ROLLOUTS | {"eval_dataset": PROMPTS[:4], "eval_strategy": "epoch"}),
    "ppo": ("ppo", ROLLOUTS),
    "ppo accumulated": ("ppo", ROLLOUTS | HALVES),
}  # fmt: skip


def weights(run):
    """Every file of weights of a finished stage."""
    files = sorted(run.glob("*.safetensors")) + sorted(run.glob("value/*.safetensors"))
    return {path.relative_to(run): path.read_bytes() for path in files}


def losses(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in lines if "loss" in entry]


def check(stage, keys, cuts, base, place):
    """Run a stage, and again from each of some checkpoints."""
    start = getattr(toolkit, stage)
    run, kept = place / "run", place / "kept"
    keys = {key: value for key, value in keys.items() if value is not None}
    keys |= {"output_dir": str(run)} | ({} if stage == "pretrain" else {"model": str(base)})
    start(**keys)
    wanted, logged = weights(run), losses(run)
    assert len(wanted) == (2 if stage == "ppo" else 1)
    shutil.copytree(run, kept)
    for cut in cuts:
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        interrupt(run, *(f"checkpoint-{step}" for step in range(cut + 1, keys["max_steps"] + 1)))
        torch.manual_seed(cut)  # what was drawn before a start does not count
        start(**keys)
        assert weights(run) == wanted, f"from checkpoint-{cut}"
        assert losses(run) == logged, f"from checkpoint-{cut}"


@pytest.mark.parametrize("case", CASES)
def test_it_ends_as_if_nothing_had_been(case, tiny_base, tmp_path):
    stage, keys, cuts = CASES[case]
    check(stage, keys, cuts, tiny_base, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_from_every_step(case, tiny_base, tmp_path):
    stage, keys = MORE[case]
    check(stage, keys | {"max_steps": 9}, range(1, 9), tiny_base, tmp_path)


@pytest.mark.slow
def test_a_whole_policy_with_a_reference_that_follows(tiny_base, tmp_path):
    """From a model that has the template's tokens: TRL loads the reference from its folder."""
    keys = {key: value for key, value in (CHATS | WHOLE).items() if value is not None}
    base = toolkit.sft(**keys, model=str(tiny_base), output_dir=str(tmp_path / "base")).output_dir
    keys = ROLLOUTS | WHOLE | FOLLOWED | {"max_steps": 7}
    check("grpo", keys, range(1, 7), base, tmp_path)


def test_a_reference_that_follows_is_not_begun_anew(tmp_path):
    trainer = SimpleNamespace(args=SimpleNamespace(sync_ref_model=True), ref_model=object())
    with pytest.raises(TrainingError, match=r"reference.safetensors was not saved with it"):
        position.load(trainer, tmp_path)


def test_a_rollout_is_kept_where_one_is_going_on(tiny_base, tmp_path):
    keys = ROLLOUTS | {"model": str(tiny_base), "output_dir": str(tmp_path), "max_steps": 5}
    toolkit.grpo(**keys)
    found = {path.parent.name for path in tmp_path.glob("checkpoint-*/rollout_0.pt")}
    assert found == {f"checkpoint-{step}" for step in (1, 2, 3, 5)}
