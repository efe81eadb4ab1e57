"""How many tokens a vote needs: sampling that stops when it is decided, against as many samples always.

    python recipes/quickstart/thinking.py runs/quickstart/exam

It reads the samples that an exam has kept, and loads no model.
"""

import json
import sys
from dataclasses import fields
from itertools import groupby
from pathlib import Path

from toolkit.evaluation.graded import Graded
from toolkit.evaluation.scaling import CONFIDENCES, agreement, point
from toolkit.inference.thinking.methods import Method


def main(folders: list[str]) -> None:
    """Print a table for each exam: per model and task, and then over all tasks of a model."""
    for folder in folders:
        print(folder)
        print(f"{'model':<16}{'task':<12}{'confidence':>10}  accuracy  of all  tokens   agrees")
        groups = questions_of(Path(folder))
        for stage in dict.fromkeys(stage for stage, _ in groups):
            tasks = {task: asked for (of, task), asked in groups.items() if of == stage}
            for confidence in CONFIDENCES:
                for task, asked in tasks.items():
                    show(stage, task, confidence, asked)
                if len(tasks) > 1:
                    show(
                        stage,
                        "all",
                        confidence,
                        [each for asked in tasks.values() for each in asked],
                    )


def show(stage: str, task: str, confidence: float, questions: list[list[Graded]]) -> None:
    """One line: the accuracy early and of all samples, and the share of the tokens it took."""
    n = min(map(len, questions))
    whole = point(questions, Method("vote", {"n": n}), {})
    early = point(questions, Method("adaptive", {"n": n, "confidence": confidence}), {})
    print(
        f"{stage:<16}{task:<12}{confidence:>10}  {100 * early['accuracy']:8.2f}  "
        f"{100 * whole['accuracy']:6.2f}  {100 * early['tokens'] / whole['tokens']:4.0f} %   "
        f"{100 * agreement(questions, confidence):5.1f} %"
    )


def questions_of(folder: Path) -> dict[tuple[str, str], list[list[Graded]]]:
    """The samples of every question, by model and task, in their order."""
    found: dict[tuple[str, str], list[list[Graded]]] = {}
    names = [field.name for field in fields(Graded)]
    for path in sorted(folder.glob("completions-*.jsonl")):
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        answers = [Graded(**{name: line[name] for name in names}) for line in lines]
        samples = [each for each in answers if each.sample is not None]
        for (stage, task, _), same in groupby(samples, lambda each: each.key[:3]):
            found.setdefault((stage, task), []).append(list(same))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
