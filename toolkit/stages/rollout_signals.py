"""What is measured of a rollout, and how it is kept in checkpoints."""

import asyncio
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.rewards import Checked
from toolkit.stages.adapter_reward import AdapterReward
from toolkit.stages.hacking import Rollout

FILE = "guard.json"


def scores_of(gold: Checked, given: dict[str, Any]) -> list[float]:
    """The scores of this process's completions by a gold check; NaN where it has none."""
    found: Any = gold(**given)
    if inspect.isawaitable(found):
        found = asyncio.run(awaited(found))
    return [float("nan") if score is None else score for score in found]


async def awaited(scores: Any) -> Any:
    """What an async gold check returns."""
    return await scores


def is_model(reward: Any) -> bool:
    """Whether a reward is a reward model's adapter."""
    return isinstance(getattr(reward, "function", reward), AdapterReward)


def agreement(judges: Sequence[Tensor]) -> float | None:
    """The lowest correlation between two of some judges' scores; None where there is none."""
    if len(judges) < 2:
        return None
    scores = torch.stack([judge.double() for judge in judges])
    scores = scores[:, ~scores.isnan().any(dim=0)]
    if scores.shape[1] < 3 or bool((scores.std(dim=1) < 1e-8).any()):
        return None
    return torch.corrcoef(scores).min().item()


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def save(trainer: Any, checkpoint: Path) -> None:
    """Keep what was measured in a checkpoint."""
    if trainer.args.should_save and getattr(trainer, "rollouts_measured", None):
        rows = [asdict(rollout) for rollout in trainer.rollouts_measured]
        (checkpoint / FILE).write_text(json.dumps(rows), encoding="utf-8")


def load(trainer: Any, checkpoint: Path) -> None:
    """Take up what was measured before a checkpoint."""
    path = checkpoint / FILE
    if path.is_file() and hasattr(trainer, "rollouts_measured"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        trainer.rollouts_measured[:] = [Rollout(**row) for row in rows]
