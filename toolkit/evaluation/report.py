"""What an exam says in the end: a row per model and task, and which of them differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from tempfile import TemporaryDirectory
from typing import Any

from toolkit.evaluation.graded import Graded, Key
from toolkit.evaluation.intervals import mcnemar_exact
from toolkit.evaluation.metrics import ExamAccuracy
from toolkit.evaluation.scaling import scaling_points
from toolkit.evaluation.selection import share_voted, shares_best
from toolkit.evaluation.working import gains, shown


@dataclass(frozen=True)
class Asked:
    """What a report needs to know beside the completions.

    Attributes:
        models: what was examined, in order.
        started: of a model, the examined one whose adapter it was trained on from.
        working: of a task, what a completion that shows its working has in it.
        scores: of each reward, every sample's score; None where it gave none.
    """

    models: Sequence[str] = ()
    started: Mapping[str, str] = field(default_factory=dict)
    working: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Mapping[Key, float | None]] = field(default_factory=dict)


def exam_report(graded: Sequence[Graded], asked: Asked | None = None) -> dict[str, Any]:
    """The rows of an exam as `exam`, their `comparisons`, `gains` by showing the working, `scaling`.

    Args:
        graded: every completion, those of a model together.
        asked: what else is known.
    """
    asked = asked or Asked()
    rows = exam_rows(graded, asked)
    pairs = [(asked.started.get(name, asked.models[0]), name) for name in asked.models[1:]]
    return {
        "exam": rows,
        "comparisons": comparisons(graded, asked.started),
        "gains": gains(rows, pairs),
        "scaling": scaling(graded, asked),
    }


def scaling(graded: Sequence[Graded], asked: Asked) -> list[dict[str, Any]]:
    """Of every stage and task with samples, accuracy against tokens; see `scaling_points`."""
    return [
        {"stage": stage, "task": task, **point}
        for (stage, task), answers in _grouped(graded).items()
        if (samples := [answer for answer in answers if answer.sample is not None])
        for point in scaling_points(_by_question(samples), asked.scores)
    ]


def exam_rows(graded: Sequence[Graded], asked: Asked | None = None) -> list[dict[str, Any]]:
    """One row per stage and task, in the order in which they come.

    `accuracy`, its 95 % interval `low` to `high`, `lenient`, `stopped` and `tokens` (the mean) are
    of the samples, or of the greedy answers where there are no samples; those with `greedy` in
    their name are of the greedy answers. An answer counts if it is right and ended; for `lenient`
    it need not have ended. `n` counts the questions, `samples` those of each.

    `vote` is the accuracy of what most samples of a question say (None without samples), and
    `best_of` that of the sample which a reward scores best, by the reward and then by how many
    samples it chose from: {"adapter:reward": {"8": 0.7, "16": 0.75}}. Of a task with `working`,
    `worked` is the share of answers that show it, `accuracy_worked` and `accuracy_direct` are the
    accuracies of those that do and of the others.
    """
    asked = asked or Asked()
    with TemporaryDirectory() as folder:
        # in a folder of its own, for the cache of `evaluate` may be read-only, or another process's
        metric = ExamAccuracy(cache_dir=folder, keep_in_memory=True)
        return [
            {"stage": stage, "task": task, **_scores(metric, answers, task, asked)}
            for (stage, task), answers in _grouped(graded).items()
        ]


def _grouped(graded: Sequence[Graded]) -> dict[tuple[str, str], list[Graded]]:
    found: dict[tuple[str, str], list[Graded]] = {}
    for answer in graded:
        found.setdefault((answer.stage, answer.task), []).append(answer)
    return found


def _scores(
    metric: ExamAccuracy, answers: Sequence[Graded], task: str, asked: Asked
) -> dict[str, Any]:
    greedy_answers = [answer for answer in answers if answer.sample is None]
    samples = [answer for answer in answers if answer.sample is not None]
    greedy = _score(metric, greedy_answers)
    scores = _score(metric, samples) if samples else greedy | {"samples": 0}
    questions = _by_question(samples)
    found = {
        "accuracy": scores["accuracy"],
        "low": scores["low"],
        "high": scores["high"],
        "greedy": greedy["accuracy"],
        "greedy_low": greedy["low"],
        "greedy_high": greedy["high"],
        "vote": share_voted(questions) if questions else None,
        "best_of": {
            reward: shares_best(questions, values)
            for reward, values in asked.scores.items()
            if questions
        },
        "n": scores["n"],
        "samples": scores["samples"],
        "lenient": scores["lenient"],
        "greedy_lenient": greedy["lenient"],
        "stopped": scores["stopped"],
        "greedy_stopped": greedy["stopped"],
        "tokens": scores["tokens"],
    }
    working = asked.working.get(task)
    return found | (shown(samples or greedy_answers, working) if working else {})


def _by_question(samples: Sequence[Graded]) -> list[list[Graded]]:
    """The samples of each question, in their order."""
    ordered = sorted(samples, key=lambda each: (each.question, each.sample))
    return [list(each) for _, each in groupby(ordered, key=lambda each: each.question)]


def _score(metric: ExamAccuracy, answers: Sequence[Graded]) -> dict[str, Any]:
    columns = ("question", "right", "stopped", "tokens")
    found = metric.compute(
        **{name: [getattr(answer, name) for answer in answers] for name in columns}
    )
    assert found is not None  # it is, in other processes than the first of a distributed metric
    return found


def comparisons(
    graded: Sequence[Graded], started: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Which stage answers better, by their greedy answers to the same questions.

    Each stage stands beside the one it was trained on from, or else the one before it, and beside
    the first. `a_only` counts the questions that `a` alone answers right and ends, `b_only` those
    of `b`; `p` is of McNemar's exact test, each by itself: of twenty tests, one is below 0.05 by
    chance.

    Args:
        graded: every completion.
        started: of a stage, the one it was trained on from.
    """
    right: dict[str, dict[str, dict[int, bool]]] = {}
    for answer in graded:
        if answer.sample is None:
            stages = right.setdefault(answer.task, {}).setdefault(answer.stage, {})
            stages[answer.question] = answer.right and answer.stopped
    return [
        _comparison(task, a, b, stages[a], stages[b])
        for task, stages in right.items()
        for a, b in _pairs(list(stages), started or {})
        if stages[a].keys() == stages[b].keys()
    ]


def _pairs(stages: Sequence[str], started: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for index, stage in enumerate(stages[1:]):
        before = started.get(stage, "")
        first = before if before in stages[: index + 1] else stages[index]
        yield from dict.fromkeys([(first, stage), (stages[0], stage)])


def _comparison(
    task: str, a: str, b: str, right_a: Mapping[int, bool], right_b: Mapping[int, bool]
) -> dict[str, Any]:
    a_only = sum(right and not right_b[question] for question, right in right_a.items())
    b_only = sum(right and not right_a[question] for question, right in right_b.items())
    return {
        "task": task, "a": a, "b": b, "a_only": a_only, "b_only": b_only, "n": len(right_a),
        "p": mcnemar_exact(a_only, b_only),
    }  # fmt: skip
