"""What an exam says in the end: a row per model and task, and which of them differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from toolkit.evaluation.intervals import mcnemar_exact
from toolkit.evaluation.metrics import ExamAccuracy

SMALLEST_P = 1e-300
"""The least that is printed: double precision has little below it."""

LEGEND = (
    "% right and ended [95 % interval]; lenient: right, however it ended; p: exact McNemar test of "
    "the greedy answers"
)


@dataclass(frozen=True)
class Graded:
    """One completion of an exam.

    Attributes:
        stage: who answered.
        task: the name of the task.
        question: its position in the task.
        sample: which of the samples; None is the greedy answer.
        text: what was said.
        stopped: whether it ended by itself, and was not cut off at the longest length.
        right: whether it gives the answer, however it ended.
        tokens: how many it has, the stop token included.
    """

    stage: str
    task: str
    question: int
    sample: int | None
    text: str
    stopped: bool
    right: bool
    tokens: int


def exam_rows(graded: Sequence[Graded]) -> list[dict[str, Any]]:
    """One row per stage and task, in the order in which they come.

    `accuracy`, its 95 % interval `low` to `high`, `lenient`, `stopped` and `tokens` (the mean) are
    of the samples, or of the greedy answers where there are no samples; those with `greedy` in
    their name are of the greedy answers. An answer counts if it is right and ended; for `lenient`
    it need not have ended. `n` counts the questions.
    """
    with TemporaryDirectory() as folder:
        # in a folder of its own, for the cache of `evaluate` may be read-only, or another process's
        metric = ExamAccuracy(cache_dir=folder, keep_in_memory=True)
        return [
            {"stage": stage, "task": task, **_scores(metric, answers)}
            for (stage, task), answers in _grouped(graded).items()
        ]


def _grouped(graded: Sequence[Graded]) -> dict[tuple[str, str], list[Graded]]:
    found: dict[tuple[str, str], list[Graded]] = {}
    for answer in graded:
        found.setdefault((answer.stage, answer.task), []).append(answer)
    return found


def _scores(metric: ExamAccuracy, answers: Sequence[Graded]) -> dict[str, Any]:
    greedy = _score(metric, [answer for answer in answers if answer.sample is None])
    samples = [answer for answer in answers if answer.sample is not None]
    scores = _score(metric, samples) if samples else greedy | {"samples": 0}
    return {
        "accuracy": scores["accuracy"],
        "low": scores["low"],
        "high": scores["high"],
        "greedy": greedy["accuracy"],
        "greedy_low": greedy["low"],
        "greedy_high": greedy["high"],
        "n": scores["n"],
        "samples": scores["samples"],
        "lenient": scores["lenient"],
        "greedy_lenient": greedy["lenient"],
        "stopped": scores["stopped"],
        "greedy_stopped": greedy["stopped"],
        "tokens": scores["tokens"],
    }


def _score(metric: ExamAccuracy, answers: Sequence[Graded]) -> dict[str, Any]:
    columns = ("question", "right", "stopped", "tokens")
    found = metric.compute(
        **{name: [getattr(answer, name) for answer in answers] for name in columns}
    )
    assert found is not None  # it is, in other processes than the first of a distributed metric
    return found


def comparisons(graded: Sequence[Graded]) -> list[dict[str, Any]]:
    """Which stage answers better, by their greedy answers to the same questions.

    Each stage stands beside the one before it and beside the first. `a_only` counts the questions
    that `a` alone answers right and ends, `b_only` those of `b`; `p` is of McNemar's exact test,
    each by itself: of twenty tests, one is below 0.05 by chance.
    """
    right: dict[str, dict[str, dict[int, bool]]] = {}
    for answer in graded:
        if answer.sample is None:
            stages = right.setdefault(answer.task, {}).setdefault(answer.stage, {})
            stages[answer.question] = answer.right and answer.stopped
    return [
        _comparison(task, a, b, stages[a], stages[b])
        for task, stages in right.items()
        for a, b in _pairs(list(stages))
        if stages[a].keys() == stages[b].keys()
    ]


def _pairs(stages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for index in range(1, len(stages)):
        yield stages[index - 1], stages[index]
        if index > 1:
            yield stages[0], stages[index]


def _comparison(
    task: str, a: str, b: str, right_a: Mapping[int, bool], right_b: Mapping[int, bool]
) -> dict[str, Any]:
    a_only = sum(right and not right_b[question] for question, right in right_a.items())
    b_only = sum(right and not right_a[question] for question, right in right_b.items())
    return {
        "task": task, "a": a, "b": b, "a_only": a_only, "b_only": b_only, "n": len(right_a),
        "p": mcnemar_exact(a_only, b_only),
    }  # fmt: skip


def exam_table(report: Mapping[str, Any]) -> RenderableType:
    """What a person reads: a table per task in 80 columns, and a sentence per comparison.

    Args:
        report: `exam`, as `exam_rows` gives it, and `comparisons`.
    """
    parts: list[RenderableType] = []
    for task in dict.fromkeys(row["task"] for row in report["exam"]):
        parts.append(_task_table([row for row in report["exam"] if row["task"] == task]))
        compared = Table.grid(padding=(0, 2))
        compared.add_column(overflow="fold")
        compared.add_column(no_wrap=True)
        for found in report["comparisons"]:
            if found["task"] == task:
                compared.add_row(escape(_sentence(found)), _probability(found["p"]))
        parts += ["", compared] if compared.row_count else []
        parts.append("")
    parts.append(f"[dim]{LEGEND}[/dim]")
    return Padding(Group(*parts), (0, 0, 0, 3))


def _task_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    first = rows[0]
    sampled = any(row["samples"] for row in rows)
    title = f"[bold]{escape(first['task'])}[/bold]: {_count(first['n'], 'question')}"
    title += f", greedy and {_count(first['samples'], 'sample')} each" if sampled else ""
    table = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD,
        show_edge=False, padding=(0, 0, 0, 1), pad_edge=False,
    )  # fmt: skip
    table.add_column("model", overflow="fold")
    for name in (*(("sampled",) if sampled else ()), "greedy", "lenient", "ended"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        accuracy = [_interval(row["accuracy"], row["low"], row["high"])] if sampled else []
        greedy = _interval(row["greedy"], row["greedy_low"], row["greedy_high"])
        shares = (f"{100 * row[key]:.1f}" for key in ("lenient", "stopped"))
        table.add_row(escape(row["stage"]), *accuracy, greedy, *shares)
    return table


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def _interval(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _sentence(found: Mapping[str, Any]) -> str:
    """A comparison in words, from the one that answers more questions right."""
    a, b, a_only, b_only = (found[key] for key in ("a", "b", "a_only", "b_only"))
    if a_only == b_only == 0:
        return f"{b} and {a} answer the same questions right"
    if a_only > b_only:
        a, b, a_only, b_only = b, a, b_only, a_only
    more = _count(b_only, "question")
    return f"{b} answers {more} right that {a} does not, {a_only:,} the other way"


def _probability(p: float) -> str:
    if p < SMALLEST_P:
        return f"p < {SMALLEST_P:g}"
    return f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.1g}"
