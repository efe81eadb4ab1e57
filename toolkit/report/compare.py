"""Runs side by side: what their recipes differ in, their exams, their seeds, paired tests."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import digest_of, read_json
from toolkit.artifacts.outgoing import is_local, last_part
from toolkit.evaluation.intervals import mcnemar_exact, student_interval
from toolkit.report.answers import Asked, greedy_answers, is_right
from toolkit.report.exams import comparison, row_of
from toolkit.report.run_folder import REPORT, Run, read_run
from toolkit.report.sections import measured, totals
from toolkit.report.words import between, points, shown

OWN = ("output_dir", "seed")
"""What two runs of one recipe may differ in."""
BASES = ("base", "base few-shot")


@dataclass
class Side:
    """A run that is compared.

    Attributes:
        label: what it is called here.
        run: the run.
        rows: of its exams, by task and then by model.
        answers: the greedy answers by task, question and model.
        keys: its recipe, flat.
    """

    label: str
    run: Run
    rows: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    answers: dict[str, Asked] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """A digest of the recipe without its seed and its folder."""
        return digest_of({k: v for k, v in self.keys.items() if k.split(".")[-1] not in OWN})


def sides_of(folders: Sequence[str | Path]) -> list[Side]:
    """Read the runs.

    Raises:
        UsageError: if a folder holds no run.
    """
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    sides = []
    for at, run in enumerate(runs):
        place = run.folder.resolve()
        label = run.name if names.count(run.name) == 1 else f"{place.parent.name}/{run.name}"
        if label in [side.label for side in sides]:
            label = f"{label} ({at + 1})"
        sides.append(Side(label, run, keys=flat(run)))
        for stage in run.stages:
            if stage.kind == "evaluate":
                for row in (read_json(stage.folder / REPORT) or {}).get("exam") or ():
                    sides[-1].rows.setdefault(row["task"], {})[row["stage"]] = row
                sides[-1].answers |= greedy_answers(run, stage)
    return sides


def flat(run: Run) -> dict[str, Any]:
    """A recipe's keys as `stage.key`, a file of this machine by its last part."""
    found: dict[str, Any] = {}
    for stage in run.stages:
        for key, value in stage.recipe.items():
            if key not in ("name", "output_dir"):
                found[f"{stage.name}.{key}"] = without_folders(value)
    return found


def without_folders(value: Any) -> Any:
    """A value whose local paths are cut down to their last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return last_part(value) if isinstance(value, str) and is_local(value) else value


def compared(folders: Sequence[str | Path]) -> dict[str, Any]:
    """Everything that is said of some runs side by side.

    Args:
        folders: of the runs, at least one.

    Raises:
        UsageError: if a folder holds no run.
    """
    sides = sides_of(folders)
    groups = groups_of(sides)
    return {
        "runs": [about(side) for side in sides],
        "groups": [[side.label for side in group] for group in groups],
        "differences": differences(sides),
        "notes": notes(sides, groups),
        "tasks": [task_of(task, sides, groups) for task in tasks_of(sides)],
        "measured": measured_of(sides),
    }


def about(side: Side) -> dict[str, str]:
    """A run in a line."""
    seeds = dict.fromkeys(str(v) for k, v in side.keys.items() if k.endswith(".seed"))
    return {"label": side.label, "state": side.run.state, "seed": ", ".join(seeds)} | totals(
        side.run.stages
    )


def groups_of(sides: Sequence[Side]) -> list[list[Side]]:
    """The runs of each recipe, which differ in seed and folder alone."""
    found: dict[str, list[Side]] = {}
    for side in sides:
        found.setdefault(side.recipe, []).append(side)
    return list(found.values())


def differences(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """The keys in which the recipes differ, with each run's value."""
    keys = dict.fromkeys(key for side in sides for key in side.keys)
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for key in keys:
        values = tuple(shown(side.keys.get(key, "–"), 60) for side in sides)
        if len(set(values)) > 1:
            stage, _, name = key.partition(".")
            found.setdefault((name, values), []).append(stage)
    return [
        {"key": name, "stages": stages, "values": list(values)}
        for (name, values), stages in found.items()
    ]


def tasks_of(sides: Sequence[Side]) -> list[str]:
    """The tasks of all exams."""
    return list(dict.fromkeys(task for side in sides for task in side.rows))


def notes(sides: Sequence[Side], groups: Sequence[Sequence[Side]]) -> list[str]:
    """What a reader must know before the numbers."""
    found = [
        f"{side.label} is {side.run.state}: {totals(side.run.stages)['stages']} stages are finished"
        for side in sides
        if side.run.state != "finished"
    ]
    for group in groups:
        data = [data_of(side) for side in group]
        if len(group) > 1 and any(each != data[0] for each in data[1:]):
            names = ", ".join(side.label for side in group)
            found.append(
                f"{names}: one recipe, but their data are not the same, which adds to their spread"
            )
    found += [
        f"{task}: the runs were not asked the same questions, so no test is paired"
        for task in tasks_of(sides)
        if len(sides) > 1 and not all(same_questions(sides[0], side, task) for side in sides[1:])
    ]
    return found


def data_of(side: Side) -> list[Any]:
    """The digests of what a run was trained on, as far as no stage of its own made it."""
    names = {stage.name for stage in side.run.stages}
    return [
        entry.get("sha256")
        for stage in side.run.stages
        for entry in stage.manifest.get("data") or ()
        if Path(str(entry.get("dataset_name"))).parent.name not in names
    ]


def same_questions(a: Side, b: Side, task: str) -> bool:
    """Whether two runs were asked the same of a task."""
    asked = [
        {
            question: [next(iter(answers.values())).get(key) for key in ("asked", "expected")]
            for question, answers in side.answers.get(task, {}).items()
        }
        for side in (a, b)
    ]
    return bool(asked[0]) and asked[0] == asked[1]


def task_of(task: str, sides: Sequence[Side], groups: Sequence[Sequence[Side]]) -> dict[str, Any]:
    """A task: of each model every run and the mean over seeds, and paired tests with the first run."""
    models = list(dict.fromkeys(model for side in sides for model in side.rows.get(task, {})))
    found = []
    for model in models:
        rows = [
            row_of(side.rows[task][model]) | {"label": side.label, "is_mean": False}
            for side in sides
            if model in side.rows.get(task, {})
        ]
        means = [mean_of(task, model, group) for group in groups]
        found.append({"name": model, "rows": [*(mean for mean in means if mean), *rows]})
    return {
        "name": task,
        "models": found,
        "tests": [
            test
            for side in sides[1:]
            if same_questions(sides[0], side, task)
            for test in tests(task, sides[0], side)
        ],
    }


def mean_of(task: str, model: str, group: Sequence[Side]) -> dict[str, Any] | None:
    """Of the runs of one recipe, mean, spread and worst; None of fewer than two."""
    rows = {
        side.label: row_of(side.rows[task][model])
        for side in group
        if model in side.rows.get(task, {})
    }
    if len(rows) < 2:
        return None
    shares = {label: row["share"] for label, row in rows.items()}
    worst = min(shares, key=lambda label: shares[label])
    mean = statistics.fmean(shares.values())
    low, high = student_interval(list(shares.values()))
    low, high = max(0.0, low), min(1.0, high)
    ends = between(low, high) if high > low else "–"  # equal runs tell nothing of their spread
    labels = list(rows)
    of = f"{labels[0]} … {labels[-1]}" if len(labels) > 2 else ", ".join(labels)
    return {
        "label": f"mean of {len(rows)}", "of": of, "is_mean": True, "share": mean, "low": low,
        "high": high, "value": points(mean), "interval": ends,
        "rest": [
            {"word": "spread (standard deviation)", "value": points(statistics.stdev(shares.values()))},
            {"word": f"worst, {worst},", "value": points(shares[worst])},
        ],
    }  # fmt: skip


def tests(task: str, a: Side, b: Side) -> list[dict[str, Any]]:
    """Paired tests of the models that two runs have by one name, and of their last ones."""
    first, second = ([m for m in side.rows.get(task, {}) if m not in BASES] for side in (a, b))
    pairs = [(model, model) for model in first if model in second]
    if first and second and (first[-1], second[-1]) not in pairs:
        pairs.append((first[-1], second[-1]))
    found = []
    for one, other in pairs:
        sides = [right(a, task, one), right(b, task, other)]
        if not sides[0] or sides[0].keys() != sides[1].keys():
            continue
        a_only = sum(sides[0][q] and not sides[1][q] for q in sides[0])
        b_only = sum(sides[1][q] and not sides[0][q] for q in sides[0])
        names = (a.label, b.label) if one == other else (f"{a.label} {one}", f"{b.label} {other}")
        counts = {"a_only": a_only, "b_only": b_only, "n": len(sides[0])}
        p = mcnemar_exact(a_only, b_only)
        test = comparison({"task": task, "a": names[0], "b": names[1], "p": p, **counts})
        found.append(test | {"model": one if one == other else f"{one} / {other}"})
    return found


def right(side: Side, task: str, model: str) -> dict[int, bool]:
    """Whether a model's greedy answer to each question is right and ended."""
    asked = side.answers.get(task, {})
    return {q: is_right(answers[model]) for q, answers in asked.items() if model in answers}


def measured_of(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """What the stages ended with: of each stage and number, every run's value."""
    values: dict[tuple[str, str], dict[str, str]] = {}
    for side in sides:
        for stage in side.run.stages:
            for word, value in measured(stage):
                values.setdefault((stage.name, word), {})[side.label] = value
    return [
        {"stage": stage, "word": word, "values": [found.get(side.label, "–") for side in sides]}
        for (stage, word), found in values.items()
    ]
