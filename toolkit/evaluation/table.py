"""What a person reads of an exam: tables and sentences in 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from toolkit.evaluation.short_names import with_short_names

SMALLEST_P = 1e-300
"""The least that is printed: double precision has little below it."""

LEGEND = (
    "% right and ended [95 % interval]; lenient: right, however it ended; p: exact McNemar test of "
    "the greedy answers"
)
LEGEND_VOTE = "; vote: what most samples say"

Rows = Sequence[Mapping[str, Any]]


def exam_table(report: Mapping[str, Any]) -> RenderableType:
    """Tables and sentences per task.

    Args:
        report: `exam`, `comparisons` and `gains`, as `exam_report` gives them.
    """
    parts: list[RenderableType] = []
    report = with_short_names(report)
    for task in dict.fromkeys(row["task"] for row in report["exam"]):
        rows = [row for row in report["exam"] if row["task"] == task]
        parts.append(_task_table(rows))
        if any(row["best_of"] for row in rows):
            parts += ["", _best_table(rows)]
        if any("worked" in row for row in rows):
            parts += ["", _working_table(rows)]
        if found := [gain for gain in report.get("gains", ()) if gain["task"] == task]:
            parts += ["", _gains_table(found)]
        compared = Table.grid(padding=(0, 2))
        compared.add_column(overflow="fold")
        compared.add_column(no_wrap=True)
        for found in report["comparisons"]:
            if found["task"] == task:
                compared.add_row(escape(_sentence(found)), _probability(found["p"]))
        parts += ["", compared] if compared.row_count else []
        parts.append("")
    parts.append(f"[dim]{LEGEND}{LEGEND_VOTE if _is_vote(report['exam']) else ''}[/dim]")
    return Padding(Group(*parts), (0, 0, 0, 3))


def _table(numbers: Sequence[str], names: Sequence[str] = ("model",)) -> Table:
    """An empty table: names on the left, numbers on the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1), pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _task_table(rows: Rows) -> Group:
    first = rows[0]
    sampled = any(row["samples"] for row in rows)
    title = f"[bold]{escape(first['task'])}[/bold]: {_count(first['n'], 'question')}"
    title += f", greedy and {_count(first['samples'], 'sample')} each" if sampled else ""
    votes = _is_vote(rows)
    names = (["sampled"] * sampled, ["greedy"], ["vote"] * votes, ["lenient", "ended"])
    table = _table([name for part in names for name in part])
    for row in rows:
        accuracy = [_interval(row["accuracy"], row["low"], row["high"])] if sampled else []
        vote = [_per_cent(row["vote"])] if votes else []
        greedy = _interval(row["greedy"], row["greedy_low"], row["greedy_high"])
        shares = (_per_cent(row[key]) for key in ("lenient", "stopped"))
        table.add_row(escape(row["stage"]), *accuracy, greedy, *vote, *shares)
    return Group(title, table)


def _is_vote(rows: Rows) -> bool:
    """Whether there are so many samples that they can outvote one another."""
    return any(row["samples"] > 2 for row in rows)


def _best_table(rows: Rows) -> Group:
    """How right the sample is that a reward scores best."""
    rewards = list(dict.fromkeys(name for row in rows for name in row["best_of"]))
    sizes = list(dict.fromkeys(n for row in rows for each in row["best_of"].values() for n in each))
    one = escape(rewards[0]) if len(rewards) == 1 else "a reward"
    names = ("model",) if len(rewards) == 1 else ("model", "reward")
    table = _table(("of 1", *(f"of {n}" for n in sizes)), names)
    for row in rows:
        for reward, shares in row["best_of"].items():
            name = (escape(row["stage"]), escape(reward))[: len(names)]
            table.add_row(*name, *map(_per_cent, (row["accuracy"], *map(shares.get, sizes))))
    return Group(f"the sample that {one} scores best", table)


def _working_table(rows: Rows) -> Group:
    """How often the working is shown, and how right it is."""
    table = _table(("shown", "right if shown", "right if not"))
    for row in rows:
        shares = (row["worked"], row["accuracy_worked"], row["accuracy_direct"])
        table.add_row(escape(row["stage"]), *map(_per_cent, shares))
    return Group("the working", table)


def _gains_table(found: Rows) -> Group:
    """What each gain comes from."""
    table = _table(("gain", "showing it more", "better working", "better at once"), ("from", "to"))
    for gain in found:
        parts = (gain[key] for key in ("gain", "choosing", "working", "direct"))
        table.add_row(
            escape(gain["a"]), escape(gain["b"]), *(f"{100 * part:+.1f}" for part in parts)
        )
    return Group("where the gain comes from, in points", table)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


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
