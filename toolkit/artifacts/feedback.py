"""What users thought of answers: rows of a JSONL file, one for every thumb.

    {"prompt": [messages], "completion": "…", "label": true, "adapter_digest": "sha256:…", "seed": 1, …}

`better` is there where a user has written what the answer should have been.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FEEDBACK = "feedback.jsonl"


def append_feedback(
    path: Path,
    *,
    prompt: Sequence[Mapping[str, Any]],
    completion: str,
    label: bool,
    better: str | None = None,
    adapter_digest: str,
    seed: int,
    **more: Any,
) -> dict[str, Any]:
    """Append a row, whole or not at all; several processes may append to one file.

    Args:
        path: of the file, which is made readable for this user only: people's talks are in it.
        prompt: the messages that were answered.
        completion: the answer.
        label: whether it was good.
        better: what a good answer would have been, if the user says so.
        adapter_digest: of the files of who answered.
        seed: of the sampling.
        **more: what else the answer depends on.

    Returns:
        The row.
    """
    row = {
        "prompt": [dict(message) for message in prompt],
        "completion": completion,
        "label": label,
        **({} if better is None else {"better": better}),
        "adapter_digest": adapter_digest,
        "seed": seed,
        **more,
    }
    append_line(path, json.dumps(row, ensure_ascii=False))
    return row


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, behind a line of its own if the last one was torn.

    Args:
        path: of the file; made readable for this user only.
        line: without its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags, 0o600)
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        torn = b""
        if size:
            os.lseek(file, size - 1, os.SEEK_SET)
            torn = b"" if os.read(file, 1) == b"\n" else b"\n"
        os.write(file, torn + line.encode() + b"\n")
    finally:
        os.close(file)
