"""How a model came to be: the manifests of its stages, oldest first, and what the exams found."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit.artifacts.inputs import NEUTRAL
from toolkit.artifacts.manifest import MANIFEST, read_json
from toolkit.recipe import STAGES, keys_of

FROM, DATA = "from ", "data "
REPORT, RECIPE = "report.json", "recipe.yaml"
NAMES = ("name", "stage", "seed")  # said elsewhere in a card
PLACES = ("model_name_or_path", "start_from", "dataset_name", "datasets", "tasks")


def lineage(folder: Path) -> list[dict[str, Any]]:
    """The manifests of a stage and of every stage here that it comes from, oldest first.

    An entry of `data` that one of them made has its name as `made_by`.

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
        found[place.resolve()] = found.pop(place.resolve()) | with_makers(place, manifest)

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
            yield folder_of(part.removeprefix(DATA), folder)


def folder_of(name: str, folder: Path) -> Path:
    """The folder of a file of rows: as it is called, or beside the stage, if the run was moved."""
    path = Path(name).expanduser()
    beside = folder.parent / path.parent.name
    return beside if (beside / path.name).is_file() else path.parent


def with_makers(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest whose data says which stage made it."""
    data = []
    for entry in manifest.get("data") or ():
        maker = read_json(folder_of(str(entry.get("dataset_name")), folder) / MANIFEST)
        data.append({**entry, "made_by": maker["name"]} if maker and "name" in maker else entry)
    return {**manifest, "data": data}


def line_of(stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a lineage, the stages whose adapter was trained on, one from the other, oldest first."""
    named = {str(stage.get("name")): stage for stage in stages}
    found: list[Mapping[str, Any]] = []
    stage = stages[-1] if stages else None
    while stage is not None and stage not in found:
        found.insert(0, stage)
        stage = named.get(str(stage.get("recipe", {}).get("start_from")))
    return found


def settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe keys of a stage whose value is not upstream's default and bears on the result.

    Those that name places are said elsewhere.
    """
    recipe = dict(manifest.get("recipe", {}))
    known = keys_of(recipe["stage"]) if recipe.get("stage") in STAGES else {}
    left_out = {*NAMES, *PLACES, *NEUTRAL}
    return {
        key: value
        for key, value in recipe.items()
        if key not in left_out and (key not in known or value != known[key].default)
    }


def exam_rows(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the exams of the same run found about a stage and, to compare, about its base.

    Args:
        folder: of the stage.
        names: of the stages that it was trained on from, and last its own.

    Returns:
        Rows of the reports, each with its task's rows as `data`; [] if it was not examined.
    """
    wanted = {"base", "base few-shot", *names}
    rows = []
    for report in sorted(folder.parent.glob(f"*/{REPORT}")):
        found = (read_json(report) or {}).get("exam", ())
        exam = read_json(report.parent / MANIFEST) or {}
        tasks = {task.get("name"): task for task in exam.get("recipe", {}).get("tasks") or ()}
        rows += [
            {**row, "data": tasks.get(row.get("task"), {})}
            for row in found
            if row.get("stage") in wanted
        ]
    return rows if names and any(row["stage"] == names[-1] for row in rows) else []


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
