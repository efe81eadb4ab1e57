"""How a model came to be: the manifests of its stages, oldest first, and what the exams found."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.artifacts.manifest import MANIFEST, read_json
from toolkit.recipe import StageRecipe

FROM, DATA = "from ", "data "
REPORT, RECIPE = "report.json", "recipe.yaml"
NAMES = ("name", "stage", "output_dir")  # said elsewhere in a card
PLACES = ("model_name_or_path", "start_from", "dataset_name", "datasets", "tasks")


def lineage(folder: Path) -> list[dict[str, Any]]:
    """The manifests of a stage and of every stage here that it comes from, oldest first.

    Args:
        folder: of the stage; [] without a manifest in it.
    """
    found: dict[Path, dict[str, Any]] = {}

    def visit(place: Path) -> None:
        manifest = read_json(place / MANIFEST)
        if manifest is None or place.resolve() in found:
            return
        found[place.resolve()] = {}  # its place, so that a circle ends
        for parent in parents(place, manifest):
            visit(parent)
        found[place.resolve()] = found.pop(place.resolve()) | manifest

    visit(folder)
    return list(found.values())


def parents(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """The folders of the stages that one started from, learnt from or was scored by."""
    for part in manifest.get("inputs", {}):
        if part.startswith(FROM):
            name = part.removeprefix(FROM)
            beside = folder.parent / name
            yield beside if beside.is_dir() else Path(name).expanduser()
        elif part.startswith(DATA):
            yield Path(part.removeprefix(DATA)).expanduser().parent


def settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe keys of a stage whose value is not the default, without those that name places."""
    recipe = dict(manifest.get("recipe", {}))
    plain = StageRecipe(str(recipe.get("stage")), "", {}, {})
    changed = {}
    for key, value in recipe.items():
        if key in NAMES or key in PLACES:
            continue
        try:
            default = plain[key]
        except KeyError:  # a key that this version does not know
            default = None
        if value != default:
            changed[key] = value
    return changed


def exam_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """What the exams of the same run found about a stage and, to compare, about its base."""
    rows = []
    for report in sorted(folder.parent.glob(f"*/{REPORT}")):
        found = (read_json(report) or {}).get("exam", ())
        exam = read_json(report.parent / MANIFEST) or {}
        tasks = {task.get("name"): task for task in exam.get("recipe", {}).get("tasks") or ()}
        rows += [
            {**row, "data": tasks.get(row.get("task"), {})}
            for row in found
            if row.get("stage") in ("base", name)
        ]
    return rows if any(row["stage"] == name for row in rows) else []


def run_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of the run that a stage's folder belongs to; {} where there is none."""
    for place in (folder, folder.parent):
        try:
            found = yaml.safe_load((place / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            return found
    return {}
