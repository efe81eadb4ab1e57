"""Which checkpoint training goes on from: the newest that is whole, or the one that is named."""

import shutil
from pathlib import Path

from toolkit.artifacts import checkpoint as on_disk
from toolkit.artifacts.checkpoint import STATE, why_not
from toolkit.artifacts.manifest import STARTED, changes, read_json
from toolkit.errors import RecipeError, ToolkitError, TrainingError
from toolkit.recipe import StageRecipe
from toolkit.recipe.sharing import FROM_HUB
from toolkit.stages.checkpoints import SAVING
from toolkit.stages.processes import (
    from_all,
    from_first,
    is_first_process,
    meet,
    own_disks,
    processes,
    writes_here,
)
from toolkit.stages.terminal import note

# Drives on which a folder is renamed file by file; as they are called in /proc/mounts.
IN_PARTS = ("s3fs", "gcsfuse", "goofys", "mount-s3", "rclone", "blobfuse", "ossfs", "juicefs")


def clean(directory: Path) -> None:
    """Remove what a save that was killed has left, and say where a rename is not one step."""
    meet()
    if writes_here() and (directory / SAVING).is_dir():
        shutil.rmtree(directory / SAVING)
        note(f"a checkpoint that was half written is removed from {directory}")
    if is_first_process() and (kind := in_parts(directory)) is not None:
        note(
            f"{directory} is on {kind}, where a folder is not renamed in one step; a checkpoint that "
            "is cut off there is found by its manifest and passed over"
        )
    meet()


def in_parts(directory: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The kind of the file system, if it is known to rename a folder in parts."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    above = {str(directory.resolve()), *map(str, directory.resolve().parents)}
    found = max(
        (line for line in lines if line[1] in above), key=lambda line: len(line[1]), default=None
    )
    kind = " ".join([found[2], found[0]]) if found else ""
    return found[2] if found and any(word in kind for word in IN_PARTS) else None


def found(recipe: StageRecipe, directory: Path) -> Path | None:
    """The checkpoint that training goes on from: the one named, or the newest that is whole.

    Args:
        recipe: may name one in `resume_from_checkpoint`.
        directory: the stage's folder.

    Returns:
        A folder; None where there is none yet. Every process gets the same.

    Raises:
        RecipeError: if the one that is named is not there, or what it is of had other inputs.
        TrainingError: if none that is there can be resumed from.
    """
    outcome = from_first(chosen(recipe, directory) if is_first_process() else None)
    if own_disks() and not isinstance(outcome, ToolkitError):
        outcome = whole_everywhere(recipe, directory, outcome)
    if isinstance(outcome, ToolkitError):
        raise outcome
    if outcome is not None:
        tell_processes(outcome)
    return outcome


def chosen(recipe: StageRecipe, directory: Path) -> Path | ToolkitError | None:
    """As `found`, with the error as a value, so that every process can raise it."""
    asked = recipe["resume_from_checkpoint"]
    try:
        if asked and asked != FROM_HUB:
            check_named(Path(asked), directory, recipe)
            return Path(asked)
        taken = newest(directory, fresh_optimizer=recipe.fresh_optimizer)
        if taken is not None:
            check_inputs(taken, directory, recipe)
    except ToolkitError as error:
        return error
    return taken


def whole_everywhere(
    recipe: StageRecipe, directory: Path, wanted: Path | None
) -> Path | ToolkitError | None:
    """The checkpoint to go on from where each machine has its own: one that is whole on all of them.

    Args:
        recipe: of the stage.
        directory: the stage's folder.
        wanted: what the first process would take.
    """
    if wanted is None:
        return None
    fresh, named = recipe.fresh_optimizer, recipe["resume_from_checkpoint"]
    folders = [wanted] if named else [folder for _, folder in on_disk.numbered(directory)]
    here = {folder for folder in folders if why_not(folder, fresh_optimizer=fresh) is None}
    each = from_all(here)
    common = set.intersection(*each)
    if common:
        return max(common, key=lambda folder: int(folder.name.rpartition("-")[2]))
    lacking = [str(number) for number, found in enumerate(each) if wanted not in found]
    return TrainingError(
        f"{wanted} is not whole on every machine (not for process(es) {', '.join(lacking)}), and "
        "each has a disk of its own; copy it there, take an output_dir that all machines see, or "
        "give --overwrite to begin anew"
    )


def tell_processes(folder: Path) -> None:
    """Say so where a checkpoint was written by another number of processes."""
    wrote = (read_json(folder / on_disk.SEAL) or {}).get("processes")
    if wrote not in (None, processes()):
        note(
            f"{folder.name} was written by {wrote} process(es) and is resumed by {processes()}: "
            "random numbers go on from others"
        )


def newest(directory: Path, *, fresh_optimizer: bool = False) -> Path | None:
    """The newest checkpoint that is whole, None where there is none; it says which it passes over.

    Raises:
        TrainingError: if there are some, and none can be resumed from.
    """
    reasons: list[str] = []
    for _, folder in on_disk.numbered(directory):
        reason = why_not(folder, fresh_optimizer=fresh_optimizer)
        reason = reason or best_is_gone(folder)
        if reason is None:
            return folder
        reasons.append(f"{folder.name}: {reason}")
        note(f"{folder.name} is passed over: {reason}")
    if not reasons:
        return None
    raise TrainingError(
        f"no checkpoint in {directory} can be resumed from ({'; '.join(reasons)}); put the file "
        f"back,{' give --fresh-optimizer to go on without it,' if can_be_fresh(directory) else ''} "
        "or give --overwrite to begin anew"
    )


def can_be_fresh(directory: Path) -> bool:
    """Whether a checkpoint lacks nothing but what a fresh optimizer does not read."""
    return any(
        why_not(folder, fresh_optimizer=True) is None for _, folder in on_disk.numbered(directory)
    )


def best_is_gone(folder: Path) -> str | None:
    """Why the best checkpoint so far, which is loaded at the end, cannot be; None if it can."""
    state = read_json(folder / STATE) or {}
    best = Path(str(state.get("best_model_checkpoint") or folder))
    if best.resolve() == folder.resolve() or not best.is_dir():
        return None  # transformers says that it is gone
    wrong = next(on_disk.damage(best), (None, None))[1]
    return f"of the best so far, {best.name}, {wrong}" if wrong else None


def check_named(asked: Path, directory: Path, recipe: StageRecipe) -> None:
    """Refuse a checkpoint by name that is not there, not whole, or of a run with other inputs."""
    if not asked.is_dir():
        raise RecipeError(
            f"resume_from_checkpoint: no folder {asked}; leave the key out, and the newest whole "
            f"checkpoint in {directory} is taken"
        )
    if (reason := why_not(asked, fresh_optimizer=recipe.fresh_optimizer)) is not None:
        fresh = why_not(asked, fresh_optimizer=True) is None
        raise TrainingError(
            f"resume_from_checkpoint: {asked} cannot be resumed from: {reason}; name another"
            f"{', or give --fresh-optimizer to go on without it' if fresh else ''}"
        )
    check_inputs(asked, directory, recipe)


def check_inputs(checkpoint: Path, directory: Path, recipe: StageRecipe) -> None:
    """Refuse a checkpoint of a run with other inputs than this one's, as far as it says its own.

    One of this folder may be too, where those after it are damaged.

    Raises:
        RecipeError: naming what differs.
    """
    before = (read_json(checkpoint / on_disk.SEAL) or {}).get("inputs")
    now = read_json(directory / STARTED)
    differing = changes(before, now) if before and now else []
    refused = [phrase for name, phrase in differing if name not in recipe.allow_change]
    if refused:
        raise RecipeError(
            f"{checkpoint} is of another run ({'; '.join(refused)}); give --allow-change KEY for "
            "each change that is meant, or name another in resume_from_checkpoint"
        )
