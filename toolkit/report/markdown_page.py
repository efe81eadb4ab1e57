"""`report.md`: the same findings in words and tables, for a pull request or a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.artifacts.markdown import NONE, code, table


def markdown_of(view: Mapping[str, Any]) -> str:
    """The report as Markdown. What a model or a row says stands in fences and code spans alone.

    Args:
        view: as `page.view_of` gives it.
    """
    parts = [
        f"# {code(view['run'].name)}: {view['run'].state}",
        table([{word: value for word, value in view["totals"].items() if value}]),
        *finding_lines(view),
        *pipeline_part(view),
        *exam_part(view),
        *probes_part(view),
        *answers_part(view),
        *stages_part(view),
    ]
    return "\n\n".join(parts) + "\n"


def finding_lines(view: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must see."""
    if view["findings"]:
        lines = [
            f"- **{found.level}**, {code(found.where or 'run')}, {code(found.what)}: "
            f"{code(found.message)}"
            for found in view["findings"]
        ]
        yield "\n".join(lines)


def pipeline_part(view: Mapping[str, Any]) -> Iterator[str]:
    """The lineage, as a nested list."""
    yield "## Pipeline"
    lines = []
    for node in view["tree"].nodes:
        state = f", {node.stage.state}" if node.stage and node.stage.state != "finished" else ""
        helped = "".join(f"; {what} by {code(maker)}" for maker, what in node.helped.items())
        lines.append(f"{'  ' * node.depth}- {code(node.label)}: {node.method}{state}{helped}")
    yield "\n".join(lines)


def exam_part(view: Mapping[str, Any]) -> Iterator[str]:
    """The tables of the exams."""
    for exam in view["exams"]:
        yield f"## Exam {code(exam['name'])}"
        for task in exam["tasks"]:
            yield f"### {code(task['name'])}: {task['about']}"
            yield table(
                [
                    {
                        "model": code(row["stage"]),
                        "right, %": row["value"],
                        "95 % interval": row["interval"],
                        "besides": ", ".join(f"{p['word']} {p['value']}" for p in row["rest"][:5]),
                    }
                    for row in task["rows"]
                ]
            )
            if task["comparisons"]:
                yield table([comparison_row(each) for each in task["comparisons"]])


def comparison_row(found: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a table of paired tests."""
    return {
        "model": code(found["b"]),
        "against": code(found["a"]),
        "gained": found["gained"],
        "lost": found["lost"],
        "points [95 %]": f"{found['difference']} {found['ends']}",
        "exact McNemar": found["p"],
        "verdict": found["verdict"],
    }


def probes_part(view: Mapping[str, Any]) -> Iterator[str]:
    """The probes around each stage: before → after."""
    if found := view["probes"]:
        yield "## Probes"
        yield table(
            [
                {"group": code(row["group"])}
                | {
                    head_of(column): f"**{cell['text']}**" if cell["worse"] else cell["text"]
                    for column, cell in zip(found["columns"], row["cells"], strict=True)
                }
                for row in found["rows"]
            ]
        )


def head_of(column: Mapping[str, Any]) -> str:
    """A stage, and what it started from."""
    return code(column["name"]) + (f" from {code(column['of'])}" if column["of"] else "")


def answers_part(view: Mapping[str, Any]) -> Iterator[str]:
    """One gained and one lost question of each task."""
    if view["answers"]:
        yield "## Answers before and after"
    for part in view["answers"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in part["counts"].items())
        yield f"### {code(part['task'])}: {counts}"
        shown = {row["kind"]: row for row in reversed(part["rows"])}
        for kind, row in shown.items():
            yield f"**{kind}**, expected {code(row['expected'])}"
            yield fenced(row["asked"])
            for each in row["answers"]:
                yield f"{code(each['model'])}, {each['verdict']}:"
                yield fenced(each["text"])


def stages_part(view: Mapping[str, Any]) -> Iterator[str]:
    """What each stage took and was trained on."""
    yield "## Stages"
    yield table(
        [
            {"stage": code(each["name"]), "method": each["method"], "state": each["state"]}
            | each["cost"]
            | {
                "ended with": ", ".join(f"{word} {value}" for word, value in each["measured"])
                or NONE
            }
            for each in view["sections"]
        ]
    )
    for each in view["sections"]:
        data = [f"{data['rows']} rows of {code(data['name'])}" for data in each["data"]]
        lines = [*data, *map(code, each["lines"])]
        if lines:
            yield f"### {code(each['name'])}\n\n" + "\n".join(f"- {line}" for line in lines)


def fenced(text: str) -> str:
    """A text in a fence that nothing inside it can end."""
    longest = max((len(line) - len(line.lstrip("`")) for line in text.split("\n")), default=0)
    fence = "`" * max(3, longest + 1, text.count("`") and _longest_run(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    """The most backticks in a row."""
    return max(map(len, "".join(c if c == "`" else " " for c in text).split()), default=0)
