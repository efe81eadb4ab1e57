"""Answers before and after: of each task some questions that were gained, lost, and neither."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.evaluation.short_names import short_names
from toolkit.report.run_folder import Run, Stage
from toolkit.report.words import shown

GAINED, LOST, SAME = "gained", "lost", "unchanged"
SHOWN = {GAINED: 2, LOST: 2, SAME: 1}
"""How many questions of a task are shown of each kind: the first ones, not the best."""
MODELS = 4
"""How many models stand side by side: the first, and the last ones."""
Line = Mapping[str, Any]
Asked = dict[int, dict[str, Line]]
"""The greedy answers to the questions of a task, by question and then by model."""


def greedy_answers(run: Run, exam: Stage) -> dict[str, Asked]:
    """The greedy answers of an exam by task, question and model."""
    found: dict[str, Asked] = {}
    for path in sorted(exam.folder.glob("completions-*.jsonl")):
        for line in run.lines(path):
            if line.get("sample") is None and isinstance(line.get("question"), int):
                task = found.setdefault(str(line.get("task")), {})
                task.setdefault(line["question"], {})[str(line.get("stage"))] = line
    return found


def side_by_side(
    run: Run, exam: Stage, models: Sequence[str], started: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Of each task, questions with the answers of several models.

    Args:
        run: the run.
        exam: its stage.
        models: in the exam's order.
        started: of a model, the one that it was trained on from.
    """
    found = []
    models = [name for name in models if name != "base few-shot"]
    names = [models[0], *models[1:][-(MODELS - 1) :]] if models else []
    short = short_names(models)
    for task, asked in greedy_answers(run, exam).items():
        rows = [
            example(kind, answers, {name: short[name] for name in names if name in answers})
            for kind, answers in picked(asked, models, started)
        ]
        counts = dict.fromkeys(SHOWN, 0)
        for answers in asked.values():
            counts[kind_of(answers, models, started)] += 1
        if rows:
            found.append({"exam": exam.name, "task": task, "rows": rows, "counts": counts})
    return found


def picked(
    asked: Asked, models: Sequence[str], started: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Line]]]:
    """The first questions of each kind."""
    left = dict(SHOWN)
    for question in sorted(asked):
        kind = kind_of(asked[question], models, started)
        if left[kind]:
            left[kind] -= 1
            yield kind, asked[question]


def kind_of(answers: Mapping[str, Line], models: Sequence[str], started: Mapping[str, str]) -> str:
    """Whether a question was gained since the first model, lost by one that was trained, or neither.

    What one model gained and another lost counts as lost, which a reader should see.
    """
    right = {name: is_right(answers[name]) for name in models if name in answers}
    for at, name in enumerate(models[1:], start=1):
        before = started.get(name, models[at - 1])
        if right.get(before) and right.get(name) is False:
            return LOST
    present = [right[name] for name in models if name in right]
    return GAINED if present and not present[0] and present[-1] else SAME


def example(kind: str, answers: Mapping[str, Line], names: Mapping[str, str]) -> dict[str, Any]:
    """A question with what each model said.

    Args:
        kind: of `SHOWN`.
        answers: of each model.
        names: how the models that are shown are called.
    """
    line = next(iter(answers.values()))
    return {
        "kind": kind,
        "asked": shown(line.get("asked", "")),
        "expected": shown(line.get("expected", ""), 200),
        "answers": [answer(called, answers[name]) for name, called in names.items()],
    }


def answer(name: str, line: Line) -> dict[str, Any]:
    """What one model said, and whether it counts."""
    ended = bool(line.get("stopped"))
    verdict = "right" if is_right(line) else "wrong" if ended else "not ended"
    return {
        "model": name,
        "text": shown(str(line.get("text", "")).strip() or "(nothing)"),
        "verdict": verdict,
        "tokens": line.get("tokens"),
    }


def is_right(line: Line) -> bool:
    """Whether an answer counts: it is right, and ended."""
    return bool(line.get("right") and line.get("stopped"))
