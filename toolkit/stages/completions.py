"""Every completion of an exam, on disk as it is made, so that an interrupted exam goes on.

One file per examined model, one line of JSON per completion; and one per reward, with the score of
each. Each of several processes appends to a file of its own; at the end the first process puts all
of them into one, in the exam's order.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import digest_of
from toolkit.evaluation.graded import Key
from toolkit.stages.processes import is_first_process, meet, process_index
from toolkit.stages.terminal import note

KEY = ("stage", "task", "question", "sample")


def file_name(model: str, kind: str = "completions") -> str:
    """The file of a model's completions: a stage's name as it is, a path or a Hub id made safe."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")
    if safe != model:  # two paths may become the same
        safe = f"{safe[-64:].lstrip('-.')}-{digest_of(model)[:8]}"
    return f"{kind}-{safe}.jsonl"


def parsed(text: str) -> dict[str, Any]:
    """A line as a mapping; an empty one for a line that was cut off."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Completions:
    """The completions of one examined model, or the scores of one reward.

    Args:
        directory: the stage's folder.
        name: what is examined, as `of` names it, or the reward.
        wanted: the digest of everything that each completion of this exam depends on.
        kind: what is kept: "completions", "scores" or "thoughts".
        path: the file, if it is not to have the usual name in the folder.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        wanted: Mapping[Key, str],
        kind: str = "completions",
        path: Path | None = None,
    ):
        self.path = path or directory / file_name(name, kind)
        self.wanted = wanted
        self.kind = kind

    def resume(self) -> set[Key]:
        """What an interrupted exam has already answered; every process calls this.

        Lines that are torn, or not of this exam, are left out and counted.
        """
        if is_first_process():
            found, others = self._read_all()
            self._write(found)
            if found:
                note(f"{self.path.name}: {len(found)} {self.kind} are there already, and kept")
            if others:
                note(f"{self.path.name}: {others} lines were torn or of another exam: removed")
        meet()
        return set(self._read(self.path)[0])

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a completion; the file holds it before the next one is made."""
        rank = process_index()
        path = self._part(rank) if rank else self.path
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def finish(self) -> list[dict[str, Any]]:
        """Put the processes' files into one, in the exam's order; every process calls this.

        Returns:
            All lines of the exam.
        """
        meet()
        if is_first_process():
            self._write(self._read_all()[0])
        meet()
        found, _ = self._read(self.path)
        missing = self.wanted.keys() - found.keys()
        assert not missing, f"{len(missing)} {self.kind} were never made"
        return list(found.values())

    def _part(self, rank: int) -> Path:
        # no stage's name holds a tilde
        return self.path.with_name(f"{self.path.stem}~{rank}.jsonl")

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}~*.jsonl"))

    def _read_all(self) -> tuple[dict[Key, dict[str, Any]], int]:
        found: dict[Key, dict[str, Any]] = {}
        others = 0
        for path in (self.path, *self._parts()):
            lines, left_out = self._read(path)
            found |= lines
            others += left_out
        return found, others

    def _read(self, path: Path) -> tuple[dict[Key, dict[str, Any]], int]:
        """The lines of a file that are of this exam, and how many others it has."""
        found: dict[Key, dict[str, Any]] = {}
        whole = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = whole.removesuffix("\n").split("\n") if whole else []
        for text in lines:
            line = parsed(text)
            key: Any = tuple(line.get(part) for part in KEY)
            if key in self.wanted and line.get("digest") == self.wanted[key]:
                found[key] = line
        return found, len(lines) - len(found)

    def _write(self, found: Mapping[Key, dict[str, Any]]) -> None:
        """Write the one file atomically, in the exam's order, and remove the processes' own."""
        write_lines(self.path, [found[key] for key in self.wanted if key in found])
        for part in self._parts():
            part.unlink()
