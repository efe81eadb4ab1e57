"""Runs of trackers (`report_to`): one group per pipeline, a run per stage, the same run on resume."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import read_json, write_json
from toolkit.recipe import StageRecipe
from toolkit.stages.processes import is_first_process

RUN = "tracker.json"
"""What a stage's run is called, in its folder."""
TENSORBOARD = "tensorboard"


@contextmanager
def tracked(trainer: Any, recipe: StageRecipe, checkpoint: Path | None) -> Iterator[None]:
    """Inside the block, trackers find out which run this is; what the user has set stays.

    Weights & Biases reads its variables, Trackio the run's name, and TensorBoard the folder, all of
    which are one for a stage wherever it is resumed. Who begins anew gets a new run.

    Args:
        trainer: before training.
        recipe: the stage's keys.
        checkpoint: that training goes on from.
    """
    told = list(trainer.args.report_to or ())
    if not told:
        yield
        return
    folder = Path(str(trainer.args.output_dir))
    group = group_of(folder, recipe.name)
    name = recipe.name if group == folder.resolve().name else f"{group}-{recipe.name}"
    identity = run_id(folder, checkpoint)
    name = trainer.args.run_name or f"{name}-{identity[:4]}"
    trainer.args.run_name = name
    for callback in trainer.callback_handler.callbacks:
        inner = getattr(callback, "tracker", callback)
        if type(inner).__name__ == "TensorBoardCallback" and inner.logging_dir is None:
            inner.logging_dir = str(folder / TENSORBOARD)
    variables = {
        "WANDB_RUN_GROUP": group,
        "WANDB_RUN_ID": identity,
        "WANDB_RESUME": "allow",
        "WANDB_NAME": name,
    }
    ours = {key: value for key, value in variables.items() if key not in os.environ}
    wandb: Any = sys.modules.get("wandb")
    begun_by_user = wandb is not None and getattr(wandb, "run", None) is not None
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)
        wandb = sys.modules.get("wandb")
        if "wandb" in told and wandb is not None and not begun_by_user:
            wandb.finish()  # or the next stage would go on in this one's run


def group_of(folder: Path, stage: str) -> str:
    """The name of the pipeline that a stage's folder is in; its own if it is in none."""
    folder = folder.resolve()
    in_pipeline = folder.name == stage and (folder.parent / "recipe.yaml").is_file()
    return folder.parent.name if in_pipeline else folder.name


def run_id(folder: Path, checkpoint: Path | None) -> str:
    """The id of a stage's run: a new one, unless training goes on from a checkpoint."""
    path = folder / RUN
    known = (read_json(path) or {}).get("run_id")
    if known and checkpoint is not None:
        return str(known)
    made = secrets.token_hex(8)
    if is_first_process():  # the only one that has trackers
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"run_id": made})
    return made
