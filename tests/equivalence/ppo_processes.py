"""One PPO training, computed by one process or by several: `accelerate launch ppo_processes.py FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from tests import tiny_ppo

COMMON = {
    "beta": 0.1, "missing_eos_penalty": 0.5, "optim": "sgd", "learning_rate": 0.02,
    "value_learning_rate": 0.1, "max_steps": 3, "max_grad_norm": 0.0,
}  # fmt: skip
REENTRANT = {"activation_checkpointing_kwargs": {"use_reentrant": True}}
CASES: dict[str, dict[str, Any]] = {
    "tied": {"base": "tied", "activation_checkpointing": False},
    "untied, checkpointed": {"base": "untied", "activation_checkpointing": True},
    "untied, reentrant": {"base": "untied", "activation_checkpointing": True, **REENTRANT},
    "trained whole": {"base": "untied", "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    "groups": {"base": "tied", "num_generations": 2, "loss_type": "dr_grpo"},
    "some unscored": {"base": "tied", "unscored": True},
    "adam": {
        "base": "tied",
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
    },
}


class FirstGradients(TrainerCallback):
    """Keeps what the first optimizer step sees, over all processes."""

    def __init__(self, model: Any):
        self.model = model
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.found:
            trained = [(n, w) for n, w in self.model.named_parameters() if w.requires_grad]
            self.found = {n: w.grad.clone() for n, w in trained if w.grad is not None}
            assert len(self.found) == len(trained), "every trained tensor must have a gradient"


def short_unscored(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """No reward for completions of one token, of which one process may have more than another."""
    rewards = tiny_ppo.odd(completion_ids)
    return [None if len(ids) == 1 else reward for ids, reward in zip(completion_ids, rewards)]  # noqa: B905


def trained(bases: dict[str, str], directory: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What is logged, and every trained tensor at the end.

    Args:
        bases: the folders of the tied and of the untied base.
        directory: where the trainer writes.
        case: one of CASES, and what a test adds to it.
    """
    keys = COMMON | case
    of_adapter = {k: keys.pop(k) for k in ("lora_modules_to_save",) if k in keys}
    model, words = tiny_ppo.policy(Path(bases[keys.pop("base")]), **of_adapter)
    keys.setdefault("per_device_train_batch_size", 8 // PartialState(cpu=True).num_processes)
    trainer = tiny_ppo.trainer(
        model, words, directory, rollout_func=tiny_ppo.fixed(words),
        reward_funcs=short_unscored if keys.pop("unscored", False) else tiny_ppo.odd,
        train_dataset=tiny_ppo.prompts(16), **keys,
    )  # fmt: skip
    before = tiny_ppo.held(trainer.model)
    gradients = FirstGradients(trainer.model)
    trainer.add_callback(gradients)
    trainer.train()
    moved = tiny_ppo.moved(before, trainer.model)
    assert moved["default"] == moved["value"] == "all"
    assert moved["base"] == moved["ref"] == "none"
    weights = {n: w.detach() for n, w in trainer.model.named_parameters() if w.requires_grad}
    return {"log": trainer.state.log_history, "weights": weights, "gradients": gradients.found}


def main(folder: Path) -> None:
    """Train every case, and write what each process has at the end."""
    bases = json.loads((folder / "bases.json").read_text())
    found = {name: trained(bases, folder / name, case) for name, case in CASES.items()}
    torch.save(found, folder / f"process_{PartialState(cpu=True).process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
