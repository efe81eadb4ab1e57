"""Room on the disk: a warning before training, none begun that does not fit, the line for a full disk."""

import errno
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel

from toolkit.artifacts.checkpoint import newest_sealed, size_of
from toolkit.errors import ToolkitError, TrainingError
from toolkit.stages.terminal import note

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# As the operating system says it, and torch's, safetensors' and the tokenizers' writers.
FULL_IN_WORDS = (
    "No space left", "unexpected pos", "file write failed", "File too large", "iostream error",
)  # fmt: skip
ROOM = 2  # checkpoints: an old one stays until the new one is whole
OPTIMIZER_BYTES = 8  # AdamW's two moments of a weight, in float32


class DiskFull(TrainingError):
    """There is no room, and what is needed has been told."""


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, is that of a full disk or quota."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if not isinstance(seen, ToolkitError) and any(
            words in str(seen) for words in FULL_IN_WORDS
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def free(folder: Path) -> int:
    """The bytes that are free where a folder is, or will be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free


def expected_size(model: Any) -> int:
    """About how many bytes a checkpoint of a model takes: what is saved, and AdamW's state."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    saved = trained if isinstance(model, PeftModel) else model.parameters()
    weights = sum(weight.numel() * weight.element_size() for weight in saved)
    return weights + OPTIMIZER_BYTES * sum(weight.numel() for weight in trained)


def warn_if_scarce(trainer: Any) -> None:
    """Say so before training where the disk has no room for two checkpoints."""
    folder = Path(str(trainer.args.output_dir))
    last = newest_sealed(folder)
    need, have = size_of(last) if last else expected_size(trainer.model), free(folder)
    if have < ROOM * need:
        note(
            f"warning: little room on the disk of {folder}: a checkpoint needs about "
            f"{in_units(need)}, an old one stays until a new one is whole, and {in_units(have)} "
            "are free"
        )


def check_room(folder: Path) -> None:
    """Refuse to begin a checkpoint that does not fit, by the size of the one before it.

    Raises:
        DiskFull: saying what is needed, and what is there.
    """
    last = newest_sealed(folder)
    if last and free(folder) < size_of(last):
        raise full_disk(folder)


def full_disk(folder: Path, partial: int = 0) -> DiskFull:
    """The one line for a full disk: what is needed, what is there, and what is safe.

    Args:
        folder: the stage's.
        partial: the bytes there are of a checkpoint that did not fit, and will be removed.
    """
    last = newest_sealed(folder)
    need = max(partial, size_of(last) if last else 0)
    needed = f"a checkpoint needs {in_units(need)}, and " if need else ""
    whole = f"the last whole checkpoint is {last.name}" if last else "there is no checkpoint"
    return DiskFull(
        f"{folder}: the disk is full: {needed}{in_units(free(folder) + partial)} are free; {whole}: "
        "make room and run the same command again"
    )


def in_units(size: int) -> str:
    """A size as a person reads it."""
    for unit, bytes_ in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"
