"""What the exams of a run found, as a page shows it: rows with intervals, and paired tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.artifacts.manifest import read_json
from toolkit.evaluation.intervals import paired_difference
from toolkit.evaluation.short_names import with_short_names
from toolkit.report.run_folder import REPORT, Run
from toolkit.report.scaling import scaling_curves
from toolkit.report.words import between, points, probability, signed

SIGNIFICANT = 0.05
BETTER, WORSE, UNCLEAR = "better", "worse", "no clear difference"


def exams_of(run: Run) -> list[dict[str, Any]]:
    """Every exam of a run that has a report: its name, and a part for each task."""
    found = []
    for stage in run.stages:
        report = read_json(stage.folder / REPORT) if stage.kind == "evaluate" else None
        if report:
            found.append({"name": stage.name, "tasks": tasks_of(report)})
    return found


def tasks_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tasks of a report with their rows, comparisons and gains."""
    short = with_short_names(report)
    rows, compared, gains = short["exam"], short["comparisons"], short["gains"]
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row_of(row) for row in rows if row["task"] == task]
        found.append(
            {
                "name": task,
                "about": about(next(row for row in rows if row["task"] == task)),
                "rows": mine,
                "comparisons": [comparison(each) for each in compared if each["task"] == task],
                "gains": [gain_of(each) for each in gains if each["task"] == task],
                "scaling": scaling_curves([p for p in short["scaling"] if p["task"] == task]),
            }
        )
    return found


def about(row: Mapping[str, Any]) -> str:
    """How a task was asked."""
    asked = f"{row['n']:,} question{'s' * (row['n'] != 1)}"
    each = f"{row['samples']:,} sample{'s' * (row['samples'] != 1)}"
    if not row["samples"]:
        return f"{asked}, greedy"
    best = list(row.get("best_of") or ())
    by = f"; best of n by {best[0]}" if len(best) == 1 else ""
    return f"{asked}, {each} of each and a greedy answer{by}"


def row_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A model's line: what is measured, its interval, and the rest in words."""
    sampled = bool(row["samples"])
    main = ("accuracy", "low", "high") if sampled else ("greedy", "greedy_low", "greedy_high")
    share, low, high = (float(row[key]) for key in main)
    rest = [("lenient", points(row["lenient"])), ("ended", points(row["stopped"]))]
    if sampled:
        ends = between(row["greedy_low"], row["greedy_high"])
        rest.insert(0, ("greedy", f"{points(row['greedy'])} {ends}"))
    if row.get("vote") is not None and row["samples"] > 2:
        rest.append(("vote", points(row["vote"])))
    best = row.get("best_of") or {}
    for reward, shares in best.items():
        by = f" by {reward}" if len(best) > 1 else ""
        rest += [(f"best of {n}{by}", points(value)) for n, value in shares.items()]
    if "worked" in row:
        rest.append(("shows its working", points(row["worked"])))
    rest.append(("tokens", f"{row['tokens']:.0f}"))
    return {
        "stage": row["stage"], "share": share, "low": low, "high": high,
        "value": points(share), "interval": between(low, high),
        "rest": [{"word": word, "value": value} for word, value in rest],
    }  # fmt: skip


def comparison(found: Mapping[str, Any]) -> dict[str, Any]:
    """A paired test in words: what the second gains over the first."""
    gained, lost, n = int(found["b_only"]), int(found["a_only"]), int(found["n"])
    low, high = paired_difference(lost, gained, n)
    verdict = UNCLEAR
    if found["p"] < SIGNIFICANT and gained != lost:
        verdict = BETTER if gained > lost else WORSE
    return {
        "task": found["task"], "a": found["a"], "b": found["b"], "gained": gained, "lost": lost,
        "difference": signed((gained - lost) / n), "ends": f"[{signed(low)}, {signed(high)}]",
        "p": probability(found["p"]), "verdict": verdict,
    }  # fmt: skip


def gain_of(found: Mapping[str, Any]) -> dict[str, str]:
    """What a gain comes from, in points."""
    parts = {key: signed(found[key]) for key in ("gain", "choosing", "working", "direct")}
    return {"a": found["a"], "b": found["b"], **parts}


def headlines(exams: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each task, the first model and the last, and what a paired test says of the two."""
    found = []
    for exam in exams:
        for task in exam["tasks"]:
            first, last = task["rows"][0], task["rows"][-1]
            if first is last:
                found.append({"task": task["name"], "first": None, "last": last, "test": None})
                continue
            tests = (
                each
                for each in task["comparisons"]
                if (each["a"], each["b"]) == (first["stage"], last["stage"])
            )
            found.append(
                {"task": task["name"], "first": first, "last": last, "test": next(tests, None)}
            )
    return found


def worse(exams: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons in which a model lost clearly."""
    return [
        each
        for exam in exams
        for task in exam["tasks"]
        for each in task["comparisons"]
        if each["verdict"] == WORSE
    ]
