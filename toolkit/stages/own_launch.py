"""Pipelines of which each stage is a launch of its own, because one would change the others.

Accelerate's plugins and some switches of torch belong to the whole process: what one stage sets is in
force for those after it. Mixed precision is not among them, because transformers 5.23 makes
Accelerate's state anew for every stage (training_args.py, _setup_devices).
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from toolkit.artifacts import manifest
from toolkit.artifacts.manifest import RunResult, StageResult
from toolkit.errors import Interrupted, ToolkitError, TrainingError
from toolkit.recipe import Recipe, StageRecipe
from toolkit.recipe.keys import TRAINING
from toolkit.stages.terminal import note

PLUGINS = ("deepspeed", "fsdp")
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_CPU_RAM_EFFICIENT_LOADING")
PROCESS_WIDE = (
    "tf32", "full_determinism", "use_liger_kernel", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "parallelism_config",
)  # fmt: skip
"""What a stage sets in torch or in classes of transformers, and nothing sets back."""


def reason(recipe: Recipe) -> str | None:
    """Why the stages of a recipe cannot share a process, in words; None if they can."""
    if len(recipe.stages) < 2:
        return None
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in {"1", "true", "yes"}:
        return "DeepSpeed stays in force for the whole process"
    for key in PLUGINS:
        for stage in recipe.stages:
            if stage.get(key):
                return f"{key} of stage {stage.name!r} stays in force for the whole process"
    training = [stage for stage in recipe.stages if stage.stage in TRAINING]
    for key in PROCESS_WIDE:
        if len({repr(stage.get(key)) for stage in training}) > 1:
            return f"the stages differ in {key}, which is set for the whole process"
    return None


def run_apart(
    recipe: Recipe, why: str, words: Sequence[str] | None, *, overwrite: bool
) -> RunResult:
    """Run each stage of a pipeline in a process of its own.

    Args:
        recipe: as it was resolved.
        why: the reason.
        words: as of `launch`.
        overwrite: as of `pipeline.run`.
    """
    note(f"each stage is a launch of its own, because {why}")
    first = recipe.stages[0]
    flags = ["--overwrite"] if overwrite else []
    flags += ["--fresh-optimizer"] if first.fresh_optimizer else []
    flags += [word for key in first.allow_change for word in ("--allow-change", key)]
    result = RunResult(recipe.output_dir)
    for stage in recipe.stages:
        launch(recipe, stage.name, words, flags)
        folder = recipe.output_dir / stage.name
        done = manifest.read_json(folder / manifest.MANIFEST) or {}
        result.stages[stage.name] = StageResult(folder, done.get("metrics", {}), done)
    return result


def one_stage_only(stage: StageRecipe, why: str) -> TrainingError:
    """What to do for the next stage, where these processes cannot run it."""
    error = TrainingError(
        f"stage {stage.name!r} is finished, and {why}: start the same command again for the next "
        "stage, or add --until NAME to end without this message"
    )
    error.everywhere = True
    return error


@contextmanager
def whole_models(stage: StageRecipe) -> Iterator[None]:
    """Have a stage that trains nothing load whole models, though the launcher asks to shard.

    transformers 5.23 (modeling_utils.py) reads from the environment that only the first process has
    to load a model; who shards it afterwards is the Trainer, which such a stage has not.
    """
    hidden = {} if stage.stage in TRAINING else {k: os.environ.pop(k, None) for k in SHARDING}
    try:
        yield
    finally:
        os.environ.update({key: value for key, value in hidden.items() if value is not None})


def launch(recipe: Recipe, until: str, words: Sequence[str] | None, flags: Sequence[str]) -> None:
    """Run a recipe up to one stage in a process of its own; what is finished is skipped there.

    Args:
        recipe: as it was resolved.
        until: the stage's name.
        words: the command's own words behind `run`; None where Python runs it.
        flags: what running takes besides recipe keys.

    Raises:
        ToolkitError: with the exit code of the launch, which has told why.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if words is None:
            words = [str(written(recipe, Path(scratch))), *trusted(recipe), *flags]
        command = [sys.executable, "-m", "toolkit", "run", *words, "--until", until]
        code = subprocess.run(command, check=False).returncode
    if code < 0 or code >= 128:
        raise Interrupted(f"stage {until!r} was interrupted", exit_code=code % 256)
    if code:
        raise failure(until, code)


def failure(stage: str, code: int) -> ToolkitError:
    """The error of a launch that has ended with this exit code."""
    kinds = {kind.exit_code: kind for kind in ToolkitError.__subclasses__()}
    return kinds.get(code, TrainingError)(f"stage {stage!r} has stopped with exit code {code}")


def written(recipe: Recipe, folder: Path) -> Path:
    """The recipe as a file that gives the same when it is read."""
    path, plain = folder / "recipe.yaml", recipe.resolved()
    for stage in plain["stages"]:
        stage.pop("trust_remote_code", None)
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def trusted(recipe: Recipe) -> list[str]:
    """The repository whose code may run, which no file may say."""
    named = {stage.written.get("trust_remote_code") for stage in recipe.stages} - {None, False}
    return [word for each in sorted(map(str, named)) for word in ("--trust_remote_code", each)]
