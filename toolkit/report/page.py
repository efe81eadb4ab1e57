"""`report.html` and `report.md` of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolkit import __version__
from toolkit.artifacts.manifest import write_text
from toolkit.report.answers import side_by_side
from toolkit.report.exams import exams_of, headlines
from toolkit.report.findings import findings_of
from toolkit.report.probes import probes_of
from toolkit.report.run_folder import FINISHED, Run, read_run
from toolkit.report.sections import section_of, totals
from toolkit.report.tree import tree_of

HTML, MARKDOWN = "report.html", "report.md"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: str | Path, output: str | Path | None = None) -> tuple[Path, Path]:
    """Write the report of a run, finished or not.

    Args:
        folder: the run's `output_dir`, or a stage's folder.
        output: another folder to write into; it is made if it is not there.

    Returns:
        The page and the Markdown.

    Raises:
        UsageError: if the folder holds no run.
    """
    from toolkit.report.markdown_page import markdown_of

    run = read_run(folder)
    view = view_of(run)
    place = Path(output).expanduser() if output else run.folder
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / HTML, rendered("report.html", view))
    write_text(place / MARKDOWN, markdown_of(view))
    return place / HTML, place / MARKDOWN


def view_of(run: Run) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    exams = exams_of(run)
    sections = [section_of(run, stage) for stage in run.stages]
    answers = [
        part
        for stage, exam in ((stage, exam) for stage in run.stages for exam in exams)
        if stage.name == exam["name"]
        for part in side_by_side(run, stage, models_of(exam), started_of(run))
    ]
    return {
        "run": run,
        "version": __version__,
        "totals": totals(run.stages),
        "libraries": libraries_of(run),
        "tree": tree_of(run),
        "scores": scores_of(exams),
        "exams": exams,
        "headlines": headlines(exams),
        "probes": probes_of(run),
        "answers": answers,
        "sections": sections,
        "findings": findings_of(run, exams),  # last: by now it is known what could not be read
        "recipe": yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True),
    }


def models_of(exam: Mapping[str, Any]) -> list[str]:
    """The models of an exam, in its order."""
    return list(dict.fromkeys(row["stage"] for task in exam["tasks"] for row in task["rows"]))


def started_of(run: Run) -> dict[str, str]:
    """Of each stage, the one that it was trained on from."""
    return {stage.name: str(stage.recipe.get("start_from") or "base") for stage in run.stages}


def scores_of(exams: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Of each model, its score in every task, for the picture of the pipeline."""
    found: dict[str, list[tuple[str, str]]] = {}
    for exam in exams:
        for task in exam["tasks"]:
            for row in task["rows"]:
                found.setdefault(row["stage"], []).append((task["name"], row["value"]))
    return found


def libraries_of(run: Run) -> list[str]:
    """The versions that the finished stages were made with, each set of them once."""
    found = []
    for stage in run.stages:
        known = stage.manifest.get("environment") or {}
        versions = [f"{name} {number}" for name, number in known.get("libraries", {}).items()]
        if stage.state == FINISHED and versions:
            found.append(", ".join([f"Python {known.get('python')}", *versions]))
    return list(dict.fromkeys(found))


def rendered(template: str, view: Mapping[str, Any]) -> str:
    """A page; every value in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(view)
