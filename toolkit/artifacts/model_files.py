"""The files that a model in a folder consists of, and the SHA-256 of each, read once."""

import os
import re
import tempfile
import time
from pathlib import Path

from toolkit.artifacts.manifest import (
    MANIFEST,
    PROOF,
    STARTED,
    digest_of,
    read_json,
    sha256_of,
    write_json,
)

# Settings, tokenizers, templates and code, under every name that upstream looks for.
BESIDE_WEIGHTS = (
    "*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.py", "*.model", "*.tiktoken",
    "*.spm", "vocab*.txt", "merges.txt",
)  # fmt: skip
# What a training run writes beside a model, and no loader reads.
RECORDS = {
    MANIFEST, STARTED, PROOF, "report.json", "trainer_state.json", "all_results.json",
    "train_results.json", "eval_results.json", "training_args.bin", "optimizer.bin",
    "scheduler.bin",
}  # fmt: skip
REMEMBERED_FROM = 64 << 20  # bytes; a smaller file is read faster than it is worth a note
SETTLED_NS = 2_000_000_000  # a file written since may be written again without its times moving
SHA256 = re.compile(r"[0-9a-f]{64}")


def model_files(folder: Path) -> list[Path]:
    """Every file of a folder that upstream may load: weights, settings, tokenizer, template, code."""
    beside = {file for pattern in BESIDE_WEIGHTS for file in folder.glob(pattern)}
    beside = {file for file in beside if file.is_file() and file.name not in RECORDS}
    return [*weight_files(folder), *sorted(beside)]


def weight_files(folder: Path) -> list[Path]:
    """The files that upstream loads weights from: `*.bin` only where there is no safetensors."""
    for pattern in ("*.safetensors", "*.bin", "*.gguf"):
        if found := sorted(file for file in folder.glob(pattern) if file.name not in RECORDS):
            return found
    return []


def file_digest(file: Path) -> str:
    """SHA-256 of the whole of a file, in hexadecimal.

    A weight file in the cache of the Hub is named by its SHA-256, which is taken as it stands. Any
    other is read: half a minute for 15 GB from a fast disk. What was read of a large file is noted
    in the user's cache folder, and holds until its size, its times or its place on the disk change.
    """
    place = file.resolve()
    if file.is_symlink() and place.parent.name == "blobs" and SHA256.fullmatch(place.name):
        return place.name
    state = _state(place)
    note = _note_of(place) if state[0] >= REMEMBERED_FROM else None
    if note is not None and (known := read_json(note)) and known.get("state") == state:
        return str(known["sha256"])
    found = sha256_of(place)
    settled = time.time_ns() - max(state[1:3]) > SETTLED_NS
    if note is not None and settled and _state(place) == state:
        _remember(note, {"file": str(place), "state": state, "sha256": found})
    return found


def _state(file: Path) -> list[int]:
    """What differs once a file was written to; the time of change cannot be set back by a user."""
    about = file.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev]


def _note_of(file: Path) -> Path | None:
    """Where the digest of a file is noted; None for a user without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return cache / "toolkit" / "sha256" / f"{digest_of(str(file))}.json"


def _remember(note: Path, found: dict[str, object]) -> None:
    """Write a note whole, though several processes do it at once; without a right to, do nothing."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=note.parent) as own:
            write_json(Path(own) / note.name, found)
            os.replace(Path(own) / note.name, note)
    except OSError:
        return
