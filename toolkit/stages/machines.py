"""Several machines: whether they share the disk of `output_dir`, and what is sent where they do not."""

import os
import secrets
import time
from pathlib import Path

from toolkit.artifacts.manifest import FAILURE, MANIFEST, RUNNING, STARTED, STATUS
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe
from toolkit.stages import processes as rank
from toolkit.stages.terminal import note

SEEN_S = 10.0  # a network drive may show another machine's file some seconds later
PIECE = 64 * 2**20
"""Bytes that are sent at a time."""
OF_ONE = {RUNNING, STATUS, FAILURE, STARTED}
"""What is about one process, and not sent."""


def look_at_disks(recipe: Recipe) -> None:
    """Find out whether all machines see one disk, and say so where they do not.

    Raises:
        RecipeError: for a stage whose processes read one another's files.
    """
    rank._own_disks = rank.machines() > 1 and not is_shared(recipe.output_dir)
    if not rank.own_disks():
        return
    for stage in recipe.stages:
        if stage.stage in ("evaluate", "rank", "rejection"):
            raise RecipeError(
                f"output_dir: {recipe.output_dir} is a disk of each machine's own, and the processes "
                f"of stage {stage.name!r} read one another's files; give a folder that all machines "
                "see, or run that stage on one"
            )
    note(
        f"{recipe.output_dir} is a disk of each machine's own: every machine writes its checkpoints, "
        "and what a stage ends with is sent to all of them"
    )


def is_shared(folder: Path) -> bool:
    """Whether every machine sees what the first process writes into a folder."""
    name = rank.from_first(f".seen-{secrets.token_hex(8)}")
    probe = folder / name
    if rank.is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    rank.meet()
    try:
        return all(rank.from_all(appears(probe)))
    finally:
        if rank.is_first_process():
            probe.unlink(missing_ok=True)


def appears(path: Path) -> bool:
    """Whether a file that is there by now is seen here."""
    until = time.monotonic() + SEEN_S
    while time.monotonic() < until:
        if path.parent.is_dir() and path.name in os.listdir(path.parent):
            return True
        time.sleep(0.2)
    return False


def send(folder: Path) -> None:
    """Send a stage's files, but for checkpoints, to every machine that does not see them.

    Args:
        folder: the stage's, by the same name on all of them.
    """
    if not rank.own_disks():
        return
    for name, size in rank.from_first(listed(folder) if rank.is_first_process() else None):
        place = folder / name
        receives = rank.is_first_of_machine() and not rank.is_first_process()
        if receives:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.with_name(f"{place.name}.part").unlink(missing_ok=True)
        for start in range(0, max(size, 1), PIECE):
            piece = rank.from_first(read(place, start) if rank.is_first_process() else None)
            if receives:
                with place.with_name(f"{place.name}.part").open("ab") as file:
                    file.write(piece)
        if receives:
            place.with_name(f"{place.name}.part").replace(place)


def listed(folder: Path) -> list[tuple[str, int]]:
    """The files of a stage with their sizes, what proves that it is finished last."""
    found = [
        (path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith("checkpoint-")
    ]
    found = [(name, size) for name, size in found if name not in OF_ONE]
    return sorted(found, key=lambda each: (each[0] == MANIFEST, each[0]))


def read(path: Path, start: int) -> bytes:
    """A piece of a file."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(PIECE)
