"""A checkpoint on disk: sealed with a manifest that is written last, and checked before it is used."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import read_json, sha256_of, write_json

SEAL = "checkpoint.json"
"""The manifest: size and SHA-256 of every file. A folder without it is no checkpoint."""
STATE = "trainer_state.json"
# How the files begin without which training does not go on as it would have; a sharded optimizer
# is a folder, and DeepSpeed keeps its own in one by the number of the step.
NEEDED = {STATE: (STATE,), "optimizer.pt": ("optimizer", "global_step"),
          "scheduler.pt": ("scheduler", "global_step"), "rng_state.pth": ("rng_state",)}  # fmt: skip
OF_THE_OPTIMIZER = ("optimizer.pt", "scheduler.pt")
"""What a fresh optimizer does not read."""


def seal(folder: Path, **noted: Any) -> None:
    """Bring every file of a checkpoint to the disk, then write its manifest.

    Args:
        folder: with all its files.
        **noted: what else the manifest says.
    """
    files = files_below(folder)
    for path in [*files.values(), *(path for path in folder.rglob("*") if path.is_dir())]:
        to_disk(path)
    write_json(folder / SEAL, noted | {"files": listed(files)})
    to_disk(folder)


def listed(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of some files, by their names."""
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in files.items()
    }


def files_below(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint by their path in it, without the manifest."""
    found = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    found.pop(SEAL, None)
    return dict(sorted(found.items()))


def size_of(folder: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(path.stat().st_size for path in files_below(folder).values())


def to_disk(path: Path) -> None:
    """Have a file or a folder on the disk, not in memory alone, before going on."""
    if os.name == "nt":  # which opens no folder, and flushes no file that is only read
        return
    found = os.open(path, os.O_RDONLY)
    try:
        os.fsync(found)
    except OSError:
        if not path.is_dir():  # some network drives cannot do it for a folder
            raise
    finally:
        os.close(found)


def sealed(directory: Path) -> list[tuple[int, Path]]:
    """The folders `checkpoint-N` that have a manifest, and their steps, the newest first."""
    return [(step, folder) for step, folder in numbered(directory) if (folder / SEAL).is_file()]


def newest_sealed(directory: Path) -> Path | None:
    """The newest checkpoint that has a manifest."""
    return next((folder for _, folder in sealed(directory)), None)


def numbered(directory: Path) -> list[tuple[int, Path]]:
    """All folders `checkpoint-N` and their steps, the newest first."""
    found = [
        (int(number), folder)
        for folder in directory.glob("checkpoint-*")
        if (number := folder.name.removeprefix("checkpoint-")).isdecimal() and folder.is_dir()
    ]
    return sorted(found, reverse=True)


def damage(folder: Path) -> Iterator[tuple[str, str]]:
    """What of a checkpoint is not as it was written: the file, and a phrase about it that names it."""
    written = contents(folder)
    if written is None:
        yield SEAL, f"{SEAL}, which is written last, is missing or damaged"
    for name, recorded in (written or {}).items():
        if (phrase := fault_of(folder / name, recorded)) is not None:
            yield name, f"{name} {phrase}"


def lacking(folder: Path) -> Iterator[tuple[str, str]]:
    """What resuming needs, and was never saved; as `damage`."""
    for name, beginnings in NEEDED.items():
        if not any(held.startswith(beginnings) for held in contents(folder) or ()):
            yield name, f"{name} was not saved with it"


def contents(folder: Path) -> dict[str, Any] | None:
    """The files that a manifest lists; None without one."""
    written = (read_json(folder / SEAL) or {}).get("files")
    return written if isinstance(written, dict) else None


def fault_of(path: Path, recorded: dict[str, Any]) -> str | None:
    """What is wrong with one file, read again to the last byte."""
    if not path.is_file():
        return "is missing"
    if (found := path.stat().st_size) != recorded["bytes"]:
        return f"has {found:,} bytes and was written with {recorded['bytes']:,}"
    return None if sha256_of(path) == recorded["sha256"] else "was changed since it was written"


def why_not(folder: Path, *, fresh_optimizer: bool = False) -> str | None:
    """Why training cannot go on from a checkpoint, in a few words; None if it can.

    Args:
        folder: the checkpoint.
        fresh_optimizer: whether optimizer and schedule begin anew, so that theirs may lack; and the
            random numbers too, where they were never saved.
    """
    excused = OF_THE_OPTIMIZER if fresh_optimizer else ()
    for name, phrase in damage(folder):
        if name not in excused:
            return phrase
    if fresh_optimizer:
        excused = (*excused, "rng_state.pth")
    return next((phrase for name, phrase in lacking(folder) if name not in excused), None)
