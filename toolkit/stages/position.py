"""Where training was, beyond what transformers keeps: rollout, moving reference, order of rows.

TRL's private names were read in TRL 1.16, trainer/grpo_trainer.py: `_step` counts the batches that
were learnt from, and `_buffered_inputs` is the rollout that they are cut from.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

from toolkit.artifacts.checkpoint import SEAL
from toolkit.artifacts.manifest import read_json
from toolkit.errors import TrainingError
from toolkit.stages import rollout_signals
from toolkit.stages.processes import process_index, processes
from toolkit.stages.prompt_order import PromptOrder

ROLLOUT = "rollout_{}.pt"
REFERENCE = "reference.safetensors"


def save(trainer: Any, checkpoint: Path) -> None:
    """Keep what was measured, and the rollout learnt from, unless the next step samples another.

    And the reference, where it follows the model.
    """
    rollout_signals.save(trainer, checkpoint)
    if moves(trainer) and trainer.args.should_save and not is_sharded(trainer):
        save_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(checkpoint / REFERENCE))
    if not hasattr(trainer, "_buffered_inputs"):
        return
    every = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer._step % every and trainer._buffered_inputs is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        held = {"step": trainer._step % every, "batches": trainer._buffered_inputs}
        torch.save(held, checkpoint / ROLLOUT.format(process_index()))


def load(trainer: Any, checkpoint: Path) -> None:
    """Go on in the middle of a rollout, where the checkpoint holds one, with the reference of then.

    Raises:
        TrainingError: if another number of processes wrote the rollout, each its part, or a
            reference that moves was not saved.
    """
    rollout_signals.load(trainer, checkpoint)
    if moves(trainer):
        if not (checkpoint / REFERENCE).is_file():
            raise TrainingError(
                f"{checkpoint}: {REFERENCE} was not saved with it, and sync_ref_model: true has moved "
                "the reference; name another checkpoint, or begin anew"
            )
        load_model(trainer.accelerator.unwrap_model(trainer.ref_model), checkpoint / REFERENCE)
    wrote = (read_json(checkpoint / SEAL) or {}).get("processes", 1)
    if not any(checkpoint.glob(ROLLOUT.format("*"))):
        return
    if wrote != processes():
        raise TrainingError(
            f"{checkpoint} was written in the middle of a rollout by {wrote} process(es): resume "
            f"with as many, found {processes()}"
        )
    path = checkpoint / ROLLOUT.format(process_index())
    held = torch.load(path, map_location=trainer.args.device, weights_only=True)
    trainer._step, trainer._buffered_inputs = held["step"], held["batches"]


def moves(trainer: Any) -> bool:
    """Whether the reference follows the model."""
    follows = getattr(trainer.args, "sync_ref_model", False)
    return follows and getattr(trainer, "ref_model", None) is not None


def is_sharded(trainer: Any) -> bool:
    """Whether no process holds a whole model."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


class LengthOrder(Sampler[int]):
    """transformers' LengthGroupedSampler, whose order depends on the seed and the epoch alone.

    In transformers 5.23 (trainer_pt_utils.py) it is drawn from the random numbers of training, which
    a resumed one has not at the start of its epoch.

    Args:
        sampler: transformers'.
        trainer: whose state says how many epochs have passed.
    """

    def __init__(self, sampler: LengthGroupedSampler, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __iter__(self) -> Iterator[int]:
        """The indices of one epoch."""
        args = self.trainer.args
        seed = args.seed if args.data_seed is None else args.data_seed
        seed += int(self.trainer.state.epoch or 0)
        self.sampler.generator = torch.Generator().manual_seed(seed)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def exact(sampler: Any, trainer: Any) -> Any:
    """A sampler whose epochs come as they would have, wherever training resumes."""
    if isinstance(sampler, RepeatSampler):
        return PromptOrder(sampler, trainer)
    return LengthOrder(sampler, trainer) if isinstance(sampler, LengthGroupedSampler) else sampler


def settings(trainer: Any) -> list[dict[str, Any]]:
    """What the recipe says of the optimizer, group by group, before a saved one is loaded."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in trainer.optimizer.param_groups
    ]


def set_rates(trainer: Any, settings: list[dict[str, Any]] | None = None) -> None:
    """Have the schedule where training is, over the learning rates of the recipe.

    Args:
        trainer: with its optimizer and its schedule.
        settings: of a recipe that has changed, for an optimizer that was loaded; by default the
            optimizer is a new one.

    Raises:
        TrainingError: if the schedule depends on what was measured before.
    """
    schedule = trainer.lr_scheduler
    if not hasattr(schedule, "lr_lambdas"):
        raise TrainingError(
            f"lr_scheduler_type {trainer.args.lr_scheduler_type} depends on what was measured before, "
            "so it does not go on with a new optimizer or another learning rate; begin anew"
        )
    groups = trainer.optimizer.param_groups
    for group, given in zip(groups, settings or [{}] * len(groups), strict=True):
        group.update(given)
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    schedule.last_epoch = trainer.state.global_step
    for group, rate, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in groups]
