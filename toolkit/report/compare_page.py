"""Runs side by side in the terminal, as one page or as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from toolkit import __version__
from toolkit.artifacts.manifest import write_text
from toolkit.artifacts.markdown import code, table
from toolkit.report.compare import compared
from toolkit.report.markdown_page import comparison_row
from toolkit.report.page import rendered

LEGEND = (
    "% right and ended [95 %: of a run over questions, of a mean over runs]; p: exact McNemar test of "
    "the greedy answers, each by itself"
)
COLOURS = {"better": "green", "worse": "red"}


def compare_runs(folders: Sequence[str | Path], path: Path | None = None) -> RenderableType:
    """Runs side by side for a terminal, and in a file.

    Args:
        folders: of the runs.
        path: a file that ends in .html or .md; None for none.

    Raises:
        UsageError: if a folder holds no run.
    """
    found = compared(folders)
    if path is not None:
        view = {"found": found, "version": __version__, "legend": LEGEND}
        is_page = path.suffix == ".html"
        write_text(path, rendered("compare.html", view) if is_page else markdown(found))
    return screen(found)


def screen(found: Mapping[str, Any]) -> RenderableType:
    """What a person reads in a terminal of 80 columns."""
    parts: list[RenderableType] = [runs_table(found)]
    if found["differences"]:
        parts += ["", differences_table(found)]
    parts += ["", *(f"[yellow]note[/yellow]: {escape(line)}" for line in found["notes"])]
    for task in found["tasks"]:
        parts += ["", task_table(task)]
        if task["tests"]:
            parts += ["", tests_table(task)]
    if not found["tasks"]:
        parts += ["", measured_table(found)]
    parts += ["", f"[dim]{LEGEND}[/dim]"]
    return Group(*parts)


def plain_table(names: Sequence[str], numbers: Sequence[str] = (), title: str = "") -> Table:
    """An empty table: names on the left, numbers on the right."""
    found = Table(
        title=title or None, title_justify="left", title_style="", box=box.SIMPLE_HEAD,
        show_edge=False, pad_edge=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for name in names:
        found.add_column(escape(name), overflow="fold")
    for name in numbers:
        found.add_column(escape(name), justify="right", no_wrap=True)
    return found


def runs_table(found: Mapping[str, Any]) -> Table:
    """The runs, and which of them are seeds of one recipe."""
    made = plain_table(("run", "state", "recipe", "seed"), ("stages", "time", "memory"))
    for run in found["runs"]:
        group = next(at for at, labels in enumerate(found["groups"]) if run["label"] in labels)
        words = (run["label"], run["state"], chr(65 + group % 26), run["seed"])
        made.add_row(*map(escape, words), run["stages"], run["time"], run["memory"])
    return made


def differences_table(found: Mapping[str, Any]) -> Table:
    """What the recipes differ in."""
    made = plain_table(("differs", *(run["label"] for run in found["runs"])))
    for each in found["differences"]:
        made.add_row(escape(in_stages(each)), *map(escape, each["values"]))
    return made


def in_stages(found: Mapping[str, Any]) -> str:
    """A key, with the stages that it differs in unless they are many."""
    stages = found["stages"]
    return found["key"] if len(stages) > 2 else f"{found['key']} ({', '.join(stages)})"


def task_table(task: Mapping[str, Any]) -> Table:
    """Of each model, the mean over seeds and every run."""
    made = plain_table(("model", "run"), ("right", "95 % interval", "spread", "worst"))
    made.title = f"[bold]{escape(task['name'])}[/bold]"
    for model in task["models"]:
        for at, row in enumerate(model["rows"]):
            spread, worst = (
                (part["value"] for part in row["rest"]) if row["is_mean"] else ("", "")
            )  # fmt: skip
            cells = (row["label"], row["value"], row["interval"], spread, worst)
            style = "bold" if row["is_mean"] else ""
            name = escape(model["name"]) if not at else ""
            made.add_row(name, *map(escape, cells), style=style, end_section=False)
    return made


def tests_table(task: Mapping[str, Any]) -> Table:
    """Paired tests."""
    made = plain_table(("model", "run", "against"), ("gained", "lost", "points [95 %]", "p", ""))
    for each in task["tests"]:
        colour = COLOURS.get(each["verdict"], "dim")
        names = map(escape, (each["model"], each["b"], each["a"]))
        numbers = (str(each["gained"]), str(each["lost"]), f"{each['difference']} {each['ends']}")
        p = each["p"].removeprefix("p = ")
        made.add_row(*names, *map(escape, numbers), p, f"[{colour}]{each['verdict']}[/{colour}]")
    return made


def measured_table(found: Mapping[str, Any]) -> Table:
    """What stages ended with, of runs without an exam."""
    made = plain_table(("stage", "number"), [run["label"] for run in found["runs"]])
    for each in found["measured"]:
        made.add_row(escape(each["stage"]), each["word"], *map(escape, each["values"]))
    return made


def markdown(found: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    return "\n\n".join(markdown_parts(found)) + "\n"


def markdown_parts(found: Mapping[str, Any]) -> Iterator[str]:
    """Its parts, from the top."""
    labels = [run["label"] for run in found["runs"]]
    yield "# Runs side by side"
    yield table(
        [{k: code(v) if k == "label" else v for k, v in run.items()} for run in found["runs"]]
    )
    if found["notes"]:
        yield "\n".join(f"- {code(line)}" for line in found["notes"])
    if found["differences"]:
        yield "## What the recipes differ in"
        yield table(
            [
                {"key": code(in_stages(each))}
                | {
                    code(label): code(value)
                    for label, value in zip(labels, each["values"], strict=True)
                }
                for each in found["differences"]
            ]
        )
    for task in found["tasks"]:
        yield f"## {code(task['name'])}"
        yield table(
            [
                {
                    "model": code(model["name"]),
                    "run": f"**{row['label']}**" if row["is_mean"] else code(row["label"]),
                    "right, %": row["value"],
                    "95 % interval": row["interval"],
                    "besides": ", ".join(
                        f"{code(part['word'])} {part['value']}" for part in row["rest"][:2]
                    ),
                }
                for model in task["models"]
                for row in model["rows"]
            ]
        )
        if task["tests"]:
            yield table([{"of": code(e["model"]), **comparison_row(e)} for e in task["tests"]])
    if found["measured"]:
        yield "## What the stages ended with"
        yield table(
            [
                {"stage": code(each["stage"]), "number": each["word"]}
                | dict(zip(map(code, labels), each["values"], strict=True))
                for each in found["measured"]
            ]
        )
    yield LEGEND
