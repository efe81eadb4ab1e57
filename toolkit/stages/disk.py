"""Room on the disk: how large a checkpoint is, a warning before training, and the line for a full one."""

import errno
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel

from toolkit.artifacts.checkpoint import newest, size_of
from toolkit.errors import ToolkitError
from toolkit.stages.terminal import note

# The operating system's words for it, and those of torch's own writer of checkpoints.
FULL_DISK = ("No space left on device", "unexpected pos", "file write failed", "File too large")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ROOM = 2  # checkpoints: an old one stays until the new one is whole
OPTIMIZER_BYTES = 8  # AdamW's two moments of a weight, in float32


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, is that of a full disk or quota."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if not isinstance(seen, ToolkitError) and any(words in str(seen) for words in FULL_DISK):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def expected_size(model: Any) -> int:
    """About how many bytes a checkpoint of a model takes: what is saved, and AdamW's state."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    saved = trained if isinstance(model, PeftModel) else model.parameters()
    weights = sum(weight.numel() * weight.element_size() for weight in saved)
    return weights + OPTIMIZER_BYTES * sum(weight.numel() for weight in trained)


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def warn_if_scarce(trainer: Any) -> None:
    """Say so before training where the disk has no room for two checkpoints."""
    folder = Path(str(trainer.args.output_dir))
    last = newest(folder)
    need = size_of(last) if last else expected_size(trainer.model)
    free = shutil.disk_usage(existing(folder)).free
    if free < ROOM * need:
        note(
            f"warning: little room on the disk of {folder}: a checkpoint needs about "
            f"{in_units(need)}, an old one stays until a new one is whole, and {in_units(free)} "
            "are free"
        )


def full_disk(folder: Path) -> str:
    """The one line for a full disk: what is needed, what is there, and what is safe."""
    last = newest(folder)
    need = f"a checkpoint needs {in_units(size_of(last))}, " if last else ""
    kept = f"{last} is whole, and" if last else "no checkpoint was written;"
    try:
        free = in_units(shutil.disk_usage(existing(folder)).free)
    except OSError:
        free = "an unknown size"
    return (
        f"{folder}: the disk is full ({need}{free} free); {kept} nothing half-written counts as "
        "finished: make room and run the same command again"
    )


def in_units(size: int) -> str:
    """A size as a person reads it."""
    for unit, bytes_ in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"
