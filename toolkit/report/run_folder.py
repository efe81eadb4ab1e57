"""A run as it lies on disk, finished or not: its stages, their logs, and how far it came."""

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from toolkit.artifacts.lineage import RECIPE, run_recipe
from toolkit.artifacts.manifest import FAILURE, MANIFEST, STARTED, STATUS, read_json
from toolkit.errors import UsageError

LOG, REPORT = "log.jsonl", "report.json"
FINISHED, RUNNING, FAILED, STOPPED, PENDING = (
    "finished", "running", "failed", "stopped", "not started"
)  # fmt: skip


@dataclass
class Stage:
    """One stage of a run.

    Attributes:
        name: its own.
        kind: "sft", "ppo", "evaluate" and so on.
        folder: where it lies.
        recipe: its keys as resolved.
        manifest: its `stage.json`; {} where it is not finished.
        entries: of its log, each with `step`.
        state: how far it came.
    """

    name: str
    kind: str
    folder: Path
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    state: str = PENDING

    @property
    def steps(self) -> int:
        """How many optimizer steps are known of."""
        known = self.manifest.get("metrics", {}).get("steps")
        return int(known or (self.entries[-1]["step"] if self.entries else 0))


@dataclass
class Run:
    """A run and its stages.

    Attributes:
        folder: the run's.
        stages: in the recipe's order.
        recipe: as resolved; {} where none is there.
        status: `status.json`; {} where none is there.
        state: how far the run came.
        unreadable: lines of logs, answers and scores that are no JSON, by file.
    """

    folder: Path
    stages: list[Stage]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    state: str = FINISHED
    unreadable: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the run is called: its folder."""
        return self.folder.resolve().name

    def lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """The objects of a file of JSON lines; what is none is counted."""
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    found = json.loads(text)
                except (ValueError, RecursionError):
                    found = None
                if isinstance(found, dict):
                    yield found
                elif text.strip():
                    place = f"{path.parent.name}/{path.name}"
                    self.unreadable[place] = self.unreadable.get(place, 0) + 1


def read_run(folder: str | Path) -> Run:
    """Read a run, or one stage of a run.

    Args:
        folder: the run's `output_dir`, or a stage's folder.

    Raises:
        UsageError: if it holds neither.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(f"{folder}: no such folder; name a run's output_dir")
    recipe = run_recipe(place) if (place / RECIPE).is_file() else {}
    manifest = read_json(place / MANIFEST)
    if not recipe and manifest is None:
        raise UsageError(
            f"{folder}: expected a run ({RECIPE}) or a stage ({MANIFEST}), found neither"
        )
    several = isinstance(recipe.get("stages"), list)
    written = recipe["stages"] if several else [recipe or (manifest or {}).get("recipe", {})]
    status = read_json(place / STATUS) or {}
    run = Run(place, [], recipe, status)
    for keys in (each for each in written if isinstance(each, Mapping)):
        kind = str(keys.get("stage", "stage"))
        name = str(keys.get("name") or kind)
        run.stages.append(read_stage(run, place / name if several else place, keys, name, kind))
    run.state = state_of_run(run)
    return run


def read_stage(run: Run, folder: Path, keys: Mapping[str, Any], name: str, kind: str) -> Stage:
    """A stage by its folder, which need not be there."""
    manifest = read_json(folder / MANIFEST) or {}
    entries = [
        entry for entry in run.lines(folder / LOG) if isinstance(entry.get("step"), int | float)
    ]
    stage = Stage(name, kind, folder, manifest.get("recipe", keys), manifest, entries)
    if manifest:
        stage.state = FINISHED
    elif run.status.get("stage") == name and run.status.get("status") in (FAILED, RUNNING):
        stage.state = str(run.status["status"])
        if stage.state == RUNNING and is_gone(run.status):
            stage.state = STOPPED
    elif (folder / STARTED).is_file():
        stage.state = STOPPED
    return stage


def is_gone(status: Mapping[str, Any]) -> bool:
    """Whether the process that a status speaks of is known to have ended; of another host, not."""
    return (
        status.get("host") == socket.gethostname()
        and isinstance(status.get("pid"), int)
        and not psutil.pid_exists(status["pid"])
    )


def state_of_run(run: Run) -> str:
    """How far a run came, by its stages."""
    states = [stage.state for stage in run.stages]
    for state in (FAILED, RUNNING, STOPPED):
        if state in states:
            return state
    return FINISHED if all(state == FINISHED for state in states) else STOPPED


def failure(run: Run) -> dict[str, str] | None:
    """What ended a run: the stage, what was said, and where the traceback is; None if nothing."""
    error = run.status.get("error")
    if run.status.get("status") not in (FAILED, "interrupted") or not isinstance(error, Mapping):
        return None
    return {
        "stage": str(run.status.get("stage")),
        "kind": str(error.get("kind")),
        "message": str(error.get("message")),
        "log": str(run.status.get("log") or FAILURE) if run.state == FAILED else "",
    }
