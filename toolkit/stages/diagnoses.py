"""What is told once of a training that goes wrong: a cause, in words, with its number and the fix."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.stages.processes import is_first_process
from toolkit.stages.terminal import note

DIAGNOSIS = "diagnosis"
"""The key by which a line of `log.jsonl` names one."""


@dataclass(frozen=True)
class Diagnosis:
    """A cause, and what to do.

    Attributes:
        name: a word for it.
        message: for a person.
        step: at which it was seen.
        value: the number that shows it.
    """

    name: str
    message: str
    step: int
    value: float | None


class Diagnoses:
    """Those of one stage, each told once: to the terminal, to `log.jsonl`, and for the manifest.

    Args:
        log_path: the stage's log.
    """

    def __init__(self, log_path: Path):
        self.log_path = log_path
        self.found: list[Diagnosis] = []

    def resume(self, step: int) -> None:
        """Take up what was told up to the step that training goes on from."""
        lines = self.log_path.read_text("utf-8").splitlines() if self.log_path.is_file() else []
        self.found = [one for one in map(read, lines) if one is not None and one.step <= step]

    def tell(
        self, name: str, message: str, step: int, value: float | None, *, aloud: bool = True
    ) -> None:
        """Tell one, unless it was told before.

        Args:
            name: a word for it.
            message: for a person.
            step: at which it was seen.
            value: the number that shows it.
            aloud: False where a person has been told by somebody else.
        """
        if self.has(name):
            return
        told = Diagnosis(name, message, step, value)
        self.found.append(told)
        if aloud:
            note(f"doctor: {message}")
        if is_first_process():
            line = {"step": step, DIAGNOSIS: name, "message": message, "value": value}
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def has(self, name: str) -> bool:
        """Whether one was told."""
        return any(one.name == name for one in self.found)

    def for_manifest(self) -> list[dict[str, Any]]:
        """All of them, as plain data."""
        return [asdict(one) for one in self.found]


def read(line: str) -> Diagnosis | None:
    """The diagnosis that a line of the log holds; None for one that a crash has cut off."""
    try:
        entry = json.loads(line)
        return Diagnosis(entry[DIAGNOSIS], entry["message"], entry["step"], entry["value"])
    except (ValueError, KeyError, TypeError):
        return None
