"""What was read from upstream's source, kept in the user's cache folder until that source changes."""

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast


def kept(sources: Sequence[Path], read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` gives, from the cache as long as no source was written since.

    Args:
        sources: the files that the result depends on.
        read: gives what JSON can hold.
    """
    states = [_state(file) for file in sources]
    note = _note_of(states)
    known = _known(note)
    if known.get("states") == states:
        return cast(dict[str, Any], known["found"])
    found = read()
    text = json.dumps({"states": states, "found": found})
    # a folder that cannot be written costs the next start some milliseconds, and no more
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=note.parent) as own:
            new = Path(own, note.name)
            new.write_text(text, encoding="utf-8")
            os.replace(new, note)
    return cast(dict[str, Any], json.loads(text)["found"])


def _state(file: Path) -> list[str | int]:
    """What differs once a file was written to; the time of change cannot be set back by a user."""
    about = file.stat()
    return [str(file), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _note_of(states: Sequence[Sequence[str | int]]) -> Path:
    """Where it is kept, for each installation elsewhere."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    paths = "\n".join(str(state[0]) for state in states)
    return cache / "toolkit" / "schema" / f"{zlib.crc32(paths.encode()):08x}.json"


def _known(note: Path) -> dict[str, Any]:
    """What was kept; nothing if it is not there or not whole."""
    try:
        known = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], known) if isinstance(known, dict) else {}
