"""A few real steps, thrown away: how long one takes, and whether all of a stage works end to end."""

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback

from toolkit.artifacts.manifest import PROOF, read_json
from toolkit.pipeline import stage_module
from toolkit.preflight.look import Look
from toolkit.preflight.price import span
from toolkit.preflight.schedule import plan
from toolkit.recipe import StageRecipe
from toolkit.stages.resources import peak_rss

STEPS = 4  # of which the first, which warms up, is not counted


class Clock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start it."""
        self.begun = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.begun)


def check_time(look: Look) -> None:
    """Time a few steps of a stage, and say how long all of them will take."""
    if not look.options.time or not can(look, "schedule"):
        return
    found = plan(look)
    if found is None:
        return
    clock = Clock()
    with thrown_away(look, min(STEPS, found.steps)) as (stage, folder), quietly():
        module = stage_module(stage.stage)
        trainer = module.build(stage, output_dir=folder, earlier=look.earlier(), callbacks=[clock])
        trainer.train()
        del trainer
    counted = clock.seconds[1:] or clock.seconds
    low, high, mean = min(counted), max(counted), sum(counted) / len(counted)
    hours = [each * found.steps / 3600 for each in (mean, low, high)]
    look.note("schedule", seconds_per_step=clock.seconds, hours=hours[0])
    look.ok(
        "schedule", f"a step takes {mean:.2f} s here ({len(counted)} timed: {low:.2f} to {high:.2f}): "
        f"{found.steps:,} steps in about {span(hours[0])}, {span(hours[1])} to {span(hours[2])}",
    )  # fmt: skip


def check_step(look: Look) -> None:
    """Take one step end to end: load, batch, backward, save, load again, compare, throw away."""
    if not look.options.step or not can(look, "step"):
        return
    started = time.perf_counter()
    with thrown_away(look, 1) as (stage, folder):
        with quietly():
            result = stage_module(stage.stage).run(stage, output_dir=folder, earlier=look.earlier())
        proof = read_json(folder / PROOF) or {}
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    loss = result.metrics.get("train_loss", result.metrics.get("loss"))
    seconds = time.perf_counter() - started
    look.note("step", seconds=seconds, loss=loss, bytes=size, peak_rss=peak_rss())
    check = proof.get("check", "numbers")
    said = f"loss {loss:.3f}, " if isinstance(loss, float) else ""
    look.ok(
        "step", f"one step: loaded, {said}saved {size / 2**20:.1f} MiB, loaded again from disk with "
        f"the same {check}; {seconds:.0f} s, thrown away",
    )  # fmt: skip


def can(look: Look, subject: str) -> bool:
    """Whether everything that a stage starts from is here."""
    if not look.trains:
        return False
    named = [look.stage.get("start_from"), look.stage.get("dataset_name")]
    named += [str(each).removeprefix("adapter:") for each in look.stage.get("reward_funcs") or ()]
    missing = [str(each) for each in named if look.is_to_come(each)]
    if missing:
        look.warn(subject, f"not tried: stage {missing[0]} has to be run first")
        return False
    if look.rows is None:
        look.warn(subject, "not tried: its rows are not here")
        return False
    return True


@contextlib.contextmanager
def thrown_away(look: Look, steps: int) -> Iterator[tuple[StageRecipe, Path]]:
    """A stage that takes so many steps in a folder that is gone afterwards."""
    changed = {
        "max_steps": steps, "save_strategy": "no", "report_to": "none", "push_to_hub": False,
        "eval_strategy": "no", "load_best_model_at_end": False, "warmup_steps": 0,
        "logging_steps": 1, "resume_from_checkpoint": None, "log_completions": False,
    }  # fmt: skip
    stage = look.stage
    known = {key: value for key, value in changed.items() if stage.get(key, ...) is not ...}
    with TemporaryDirectory(prefix="toolkit-check-") as folder:
        yield replace(stage, written={**stage.written, **known}), Path(folder)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what a stage tells to itself: the report says it."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
