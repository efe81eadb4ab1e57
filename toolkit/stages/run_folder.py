"""The folder of a stage before it runs: whose it is, and what an earlier run has left in it."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from toolkit.artifacts import manifest
from toolkit.artifacts.checkpoint import SEAL, newest_sealed
from toolkit.artifacts.running import only_run
from toolkit.errors import RecipeError
from toolkit.stages import terminal
from toolkit.stages.processes import is_first_process, writes_here


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep other runs out of a folder while the block runs."""
    return only_run(folder, terminal.note) if is_first_process() else nullcontext()


def inputs_before(folder: Path) -> dict[str, Any] | None:
    """What an unfinished run in a folder was started with; None where there is none.

    Its newest_sealed checkpoint says so: the folder's own record may be lost, or be of a start that came to
    no checkpoint yet.
    """
    checkpoint = newest_sealed(folder)
    sealed = (manifest.read_json(checkpoint / SEAL) or {}) if checkpoint else {}
    return sealed.get("inputs") or manifest.read_json(folder / manifest.STARTED)


def refuse_or_clear(
    folder: Path,
    before: Mapping[str, Any] | None,
    changed: list[str],
    *,
    finished: bool,
    overwrite: bool,
) -> None:
    """Never write over another run in silence; with `overwrite`, remove what the old one left.

    Raises:
        RecipeError: if the folder holds another run, or files that are no run's.
    """
    if before is None:
        if folder.is_dir() and any(
            path.name == "config.json" or path.suffix == ".safetensors" for path in folder.iterdir()
        ):
            raise RecipeError(
                f"{folder} holds model files that no run here wrote; give another output_dir"
            )
        return
    if not changed:
        return  # an interrupted run with the same inputs: resumed
    kept = (manifest.MANIFEST, "*.safetensors", "checkpoint-*", "round-*")
    at_stake = any(any(folder.glob(pattern)) for pattern in kept)
    if at_stake and not overwrite:
        go_on = "" if finished else "--allow-change KEY goes on with what is meant, "
        raise RecipeError(
            f"{folder} holds a run that is not this one any more ({'; '.join(changed)}); {go_on}"
            "--overwrite reruns it and all that follows from it, or give another output_dir"
        )
    if writes_here():
        (folder / "log.jsonl").unlink(missing_ok=True)
    if at_stake and writes_here():
        remove(folder)


def remove(folder: Path) -> None:
    """Remove what a run left; what it was of goes last, so that a crash in between mixes no two."""
    old = manifest.read_json(folder / manifest.MANIFEST) or {}
    for pattern in ("checkpoint-*", "round-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)
    for pattern in ("completions-*.jsonl", "scores-*.jsonl", "train-*.jsonl"):
        for path in folder.glob(pattern):
            path.unlink()
    for name in (*old.get("outputs", ()), manifest.MANIFEST, manifest.STARTED):
        (folder / name).unlink(missing_ok=True)
