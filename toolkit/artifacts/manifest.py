"""The manifest of a stage, `stage.json`: what went in, what came out, and that it is finished.

It is written last and atomically: a folder without it holds no finished stage.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toolkit.recipe import StageRecipe

MANIFEST = "stage.json"
STARTED = "started.json"
PROOF = "proof.json"
RUNNING = "running.json"
STATUS = "status.json"
FAILURE = "failure.log"
INPUTS = {"base": ("base ", "weights of "), "data": ("data ",), "from": ("from ",),
          "object": ("object ",)}  # fmt: skip
"""What a stage's inputs are called, besides its recipe keys, and how their names begin."""
LIBRARIES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "bitsandbytes"
)  # fmt: skip


@dataclass
class StageResult:
    """What a finished stage hands back.

    Attributes:
        output_dir: its folder.
        metrics: what was measured, by name.
        manifest: the content of its `stage.json`.
    """

    output_dir: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunResult:
    """What a finished run of one stage or several hands back.

    Attributes:
        output_dir: the run's folder.
        stages: every stage's result, by the stage's name, in order.
    """

    output_dir: Path
    stages: dict[str, StageResult] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics of every stage, by the stage's name."""
        return {name: result.metrics for name, result in self.stages.items()}

    @property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """The manifest of every stage, by the stage's name."""
        return {name: result.manifest for name, result in self.stages.items()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a value as canonical JSON; what JSON has no word for counts by its `str`."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_files(root: Path, files: Iterable[Path]) -> str:
    """One digest for several files: their names below `root`, and their bytes."""
    return digest_of({file.relative_to(root).as_posix(): sha256_of(file) for file in files})


def outputs_of(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file at the top of a stage's folder, except records of the run."""
    skipped = {MANIFEST, STARTED, RUNNING, PROOF, STATUS, FAILURE, "log.jsonl", "recipe.yaml"}
    skipped |= {"report.html", "report.md"}  # of a run of one stage; drawn again at any time
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(directory.iterdir())
        if file.is_file() and file.name not in skipped and not file.name.startswith(".")
    }


def environment() -> dict[str, Any]:
    """The versions that produced a stage: Python, the platform, and the libraries."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": found,
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    text = json.dumps(value, indent=2, default=str, ensure_ascii=False)
    write_text(path, f"{text}\n", errors="strict")


def write_text(path: Path, text: str, errors: str = "replace") -> None:
    """Write a text so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", errors=errors) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is no file, or half of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def changed_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of inputs, one short phrase each; as `changes`."""
    return [phrase for _, phrase in changes(before, now)]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What differs between two sets of inputs: what `--allow-change` calls it, and a short phrase.

    A recipe key is called by its name, anything else as in INPUTS. A key that one of the two leaves
    out has its default there.
    """
    found: list[tuple[str, str]] = []
    for part in sorted({*before, *now}):
        old, new = before.get(part), now.get(part)
        if old == new:
            continue
        if part == "recipe" and isinstance(old, Mapping) and isinstance(new, Mapping):
            values = {key: (_in_force(old, key), _in_force(new, key)) for key in {*old, *new}}
            found += [
                (key, f"{key}: {one!r} → {other!r}")
                for key, (one, other) in sorted(values.items())
                if one != other
            ]
        elif part in before and part in now:
            found.append((kind_of(part), f"{part}: its content changed"))
        elif part.startswith("object "):  # what another name replaces shows as a recipe key
            given = "given" if part in now else "not given"
            found.append((kind_of(part), f"{part}: {given} now"))
    return found


def kind_of(part: str) -> str:
    """What of a run an input that is no recipe key belongs to: a word of INPUTS."""
    return next((kind for kind, words in INPUTS.items() if part.startswith(words)), part)


def _in_force(recipe: Mapping[str, Any], key: str) -> Any:
    """A key's value in a recipe as a manifest holds it: what is there, else the stage's default."""
    if key in recipe:
        return recipe[key]
    try:
        default = StageRecipe(str(recipe.get("stage")), "", recipe, {})[key]
    except KeyError:  # written by a version that knows other keys or stages
        return "absent"
    return json.loads(json.dumps(default, default=str))


def damaged_outputs(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What no longer is as a finished stage left it, one short phrase per file."""
    phrases = []
    for name, recorded in manifest["outputs"].items():
        file = directory / name
        if not file.is_file():
            phrases.append(f"{name} is missing")
        elif sha256_of(file) != recorded["sha256"]:
            phrases.append(f"{name} was changed since")
    return phrases
