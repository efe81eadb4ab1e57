"""What is said of a reward model in the end: a table of held-out pairs, and what it goes by."""

from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from toolkit.evaluation.pair_accuracy import PairAccuracy, length_bias

COLUMNS = ("prompt", "chosen", "rejected", "chosen_tokens", "rejected_tokens")
ROWS = (("longer", "is longer"), ("equal", "is as long"), ("shorter", "is shorter"))


def pair_scores(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `PairAccuracy` finds in scored pairs, and `length_bias`.

    Args:
        pairs: at least one; each with the columns of the metric.
    """
    with TemporaryDirectory() as folder:
        # in a folder of its own, for the cache of `evaluate` may be read-only, or another process's
        metric = PairAccuracy(cache_dir=folder, keep_in_memory=True)
        found = metric.compute(**{name: [pair[name] for pair in pairs] for name in COLUMNS})
    assert found is not None  # it is, in other processes than the first of a distributed metric
    return found | {"length_bias": length_bias(found)}


def pair_table(found: Mapping[str, Any]) -> RenderableType:
    """What a person reads, in 80 columns.

    Args:
        found: as `pair_scores` gives it.
    """
    table = Table(
        title=f"[bold]held-out pairs[/bold]: {found['pairs']:,} of {found['prompts']:,} prompts",
        title_justify="left", title_style="", box=box.SIMPLE_HEAD, show_edge=False,
        padding=(0, 0, 0, 1), pad_edge=False,
    )  # fmt: skip
    table.add_column("where the chosen answer", no_wrap=True)
    table.add_column("right", justify="right", no_wrap=True)
    table.add_column("pairs", justify="right", no_wrap=True)
    table.add_row("is any", _interval(found), f"{found['pairs']:,}")
    for key, words in ROWS:
        part = found["by_length"][key]
        if part["pairs"]:
            table.add_row(words, _interval(part), f"{part['pairs']:,}")
    table.add_row("preferring the longer one", f"{100 * found['longer_accuracy']:.1f}", "")
    said = f"margin {found['margin']:.2f}; calibration error {100 * found['calibration_error']:.1f}"
    if found["longer_share"] is not None:
        said += f"; the longer answer is preferred in {100 * found['longer_share']:.0f} %"
    legend = "% of pairs in the right order [95 % interval over prompts]; a tie counts half"
    return Padding(Group(table, f"[dim]{said}[/dim]", f"[dim]{legend}[/dim]"), (0, 0, 0, 3))


def pair_warning(found: Mapping[str, Any]) -> str | None:
    """The line that names a reward model which goes by length, or that nobody can tell.

    Args:
        found: as `pair_scores` gives it.
    """
    liked, share = found["length_bias"], found["longer_share"]
    if liked is not None:
        against = "shorter" if liked == "longer" else "longer"
        part = found["by_length"][against]
        agreement = share if liked == "longer" else 1 - share
        return (
            f"warning: this reward model merely likes {'long' if liked == 'longer' else 'short'} "
            f"answers: it prefers the {liked} one in {100 * agreement:.0f} % of pairs, and is right "
            f"in {100 * part['accuracy']:.0f} % of the {part['pairs']:,} whose chosen answer is the "
            f"{against} one; give it pairs in which length does not tell"
        )
    one_sided = [
        (liked, against)
        for liked, against in (("longer", "shorter"), ("shorter", "longer"))
        if found["by_length"][liked]["pairs"] and not found["by_length"][against]["pairs"]
    ]
    if one_sided:
        liked, against = one_sided[0]
        return (
            f"warning: in no held-out pair is the chosen answer the {against} one, so nobody can "
            f"tell whether this reward model merely likes {'long' if liked == 'longer' else 'short'}"
            " answers"
        )
    return None


def _interval(part: Mapping[str, Any]) -> str:
    return f"{100 * part['accuracy']:.1f} [{100 * part['low']:.1f}, {100 * part['high']:.1f}]"
