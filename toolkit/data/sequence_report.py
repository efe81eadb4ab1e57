"""What became of the rows: how many sequences and tokens, and what was split, cut or lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from toolkit.errors import DataError

NAMED_ROWS = 5  # how many rows a report names
MOST_STOPS_LOST = 0.05  # a model that seldom sees an end does not learn to end
KEEP_START, KEEP_END = "keep_start", "keep_end"  # TRL's values of truncation_mode


@dataclass(frozen=True)
class SequenceReport:
    """What became of the rows.

    Attributes:
        mode: what carries loss: "the assistant's turns", "the completion" or "every token".
        max_length: where sequences were cut; None if nowhere.
        rows: rows that were read.
        sequences: what is trained on.
        tokens: their tokens.
        trained_tokens: those that carry loss.
        longest: tokens of the longest sequence, before the cut.
        rows_split: rows that became one sequence per assistant turn.
        rows_cut: rows with a sequence over `max_length`.
        rows_stop_lost: rows that are trained without their last trained token, the stop token.
        rows_overlong: rows whose trained tokens were all cut off, which are not trained.
        turns_lost: sequences of other rows whose trained tokens were all cut off.
        rows_single: rows of which one token only is trained.
        named: the first rows of each such count, by its name.
        truncation_mode: which part of a sequence over `max_length` was kept, "keep_start" or "keep_end".
        rows_start_lost: rows that are trained without their first trained token.
        rows_left_out: rows of which the chat template leaves something out.
        left_out: what that is, such as "developer messages".
        stops_kept_at: the smallest `max_length` at which no more than a twentieth of the rows lose
            a stop token.
    """

    mode: str
    max_length: int | None
    rows: int
    sequences: int
    tokens: int
    trained_tokens: int
    longest: int
    rows_split: int
    rows_cut: int
    rows_stop_lost: int
    rows_overlong: int
    turns_lost: int
    rows_single: int
    named: Mapping[str, list[str]] = field(default_factory=dict)
    truncation_mode: str = KEEP_START
    rows_start_lost: int = 0
    rows_left_out: int = 0
    left_out: list[str] = field(default_factory=list)
    stops_kept_at: int = 0

    @property
    def rows_lost(self) -> int:
        """Rows that are not trained."""
        return self.rows_overlong

    @property
    def stops_lost(self) -> float:
        """The share of the rows whose stop token is cut off, with the whole answer or without."""
        return (self.rows_stop_lost + self.rows_overlong) / max(1, self.rows)

    def lines(self) -> list[str]:
        """The report in words: what is trained, then one line for everything that was changed."""
        share = self.trained_tokens / max(1, self.tokens)
        lines = [
            f"{self.rows:,} rows → {self.sequences:,} sequences, {readable(self.tokens)} tokens, "
            f"{share:.0%} trained: {self.mode}; the longest has {self.longest:,}"
        ]
        is_end = self.truncation_mode == KEEP_END
        cut, lost = f"cut at max_length {self.max_length}", "stop token"
        if is_end:
            cut, lost = f"cut to the last {self.max_length} (max_length)", "first trained tokens"
        losing = self.rows_start_lost if is_end else self.rows_stop_lost
        if losing:
            cut += f"; {losing:,} {'loses its' if losing == 1 else 'lose their'} {lost}"
        changes = {
            "rows_split": "split, one sequence per assistant turn: the template renders earlier "
            "turns otherwise than when they were generated",
            "rows_cut": cut,
            "rows_overlong": "lost, not trained: no trained token within max_length "
            f"{self.max_length}",
            "turns_lost": f"lost, not trained: what {'follows' if is_end else 'precedes'} fills "
            f"max_length {self.max_length}",
            "rows_single": "with one trained token only",
            "rows_left_out": f"with what the chat template leaves out ({', '.join(self.left_out)}): "
            "the model never sees it; write it as a role that the template shows, or set "
            "chat_template_path to a template that shows it",
        }
        lines += [
            f"{self._counted(name)} {what}" for name, what in changes.items() if getattr(self, name)
        ]
        return lines

    def _counted(self, name: str) -> str:
        """A count with the first rows that it counts."""
        count, rows = getattr(self, name), list(dict.fromkeys(self.named[name]))
        unit = name.partition("_")[0].removesuffix("s" if count == 1 else "")
        more, label = ", …" if count > NAMED_ROWS else "", "row" if len(rows) == 1 else "rows"
        return f"{count:,} {unit} ({label} {', '.join(rows)}{more})"


def report_of(
    counts: Mapping[str, np.ndarray],
    row_name: Callable[[int], str],
    *,
    mode: str,
    max_length: int | None,
    truncation_mode: str,
) -> SequenceReport:
    """The account of some sequences.

    Args:
        counts: for every sequence, in order, `at`, its place among all; `part`, its place in its
            row; `length`, its tokens before the cut; `first_trained` and `last_trained`, the index
            of its first and its last trained token; `trained`, how many tokens are trained before
            the cut; `kept`, after it; `left_out`, what the chat template leaves out of its row.
        row_name: what to call the row of the sequence at a place.
        mode: what carries loss.
        max_length: where sequences were cut.
        truncation_mode: which part of them was kept.
    """
    kept, begins = counts["kept"], np.flatnonzero(counts["part"] == 0)
    limit = np.iinfo(np.int64).max if max_length is None else max_length
    length = np.minimum(counts["length"], limit)

    def per_row(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values.astype(np.int64), begins) if len(begins) else values[:0]

    row_kept = per_row(kept)
    row_of = np.cumsum(counts["part"] == 0) - 1
    is_lost, is_end = row_kept == 0, truncation_mode == KEEP_END
    stop_cut = (counts["last_trained"] >= limit) & (not is_end)
    start_cut = (counts["first_trained"] < counts["length"] - length) & is_end
    rows = {
        "rows_split": per_row(np.ones_like(kept)) > 1,
        "rows_cut": per_row(counts["length"] > limit) > 0,
        "rows_stop_lost": per_row((kept > 0) & stop_cut) > 0,
        "rows_start_lost": per_row((kept > 0) & start_cut) > 0,
        "rows_overlong": is_lost,
        "rows_single": row_kept == 1,
        "rows_left_out": per_row(counts["left_out"] != "") > 0,
    }
    places = {name: counts["at"][begins[mask]] for name, mask in rows.items()}
    places["turns_lost"] = counts["at"][(kept == 0) & ~is_lost[row_of]]
    missing = [what for text in np.unique(counts["left_out"]) if text for what in text.split(", ")]
    return SequenceReport(
        mode=mode,
        max_length=max_length,
        truncation_mode=truncation_mode,
        left_out=list(dict.fromkeys(missing)),
        stops_kept_at=_stops_kept_at(counts["last_trained"], begins),
        rows=len(begins),
        sequences=int((kept > 0).sum()),
        tokens=int(length[kept > 0].sum()),
        trained_tokens=int(kept.sum()),
        longest=int(counts["length"].max(initial=0)),
        named={k: [row_name(int(at)) for at in found[:NAMED_ROWS]] for k, found in places.items()},
        **{name: len(found) for name, found in places.items()},
    )


def _stops_kept_at(last_trained: np.ndarray, begins: np.ndarray) -> int:
    if not len(begins):
        return 0
    needed = np.sort(np.maximum.reduceat(last_trained, begins)) + 1
    return int(needed[len(needed) - 1 - int(len(needed) * MOST_STOPS_LOST)])


def check_stops(report: SequenceReport) -> None:
    """Refuse to train on rows of which many have lost their end.

    Raises:
        DataError: naming how many, the first of them, and the `max_length` that would do.
    """
    if report.stops_lost <= MOST_STOPS_LOST:
        return
    lost = report.rows_stop_lost + report.rows_overlong
    rows = [*report.named["rows_stop_lost"], *report.named["rows_overlong"]][:NAMED_ROWS]
    keep_end = ", or set truncation_mode: keep_end" * (report.truncation_mode == KEEP_START)
    raise DataError(
        f"max_length {report.max_length}: {lost:,} of {report.rows:,} rows ({report.stops_lost:.0%}; "
        f"{'row' if len(rows) == 1 else 'rows'} {', '.join(rows)}{', …' * (lost > len(rows))}) lose "
        f"their stop token, more than {MOST_STOPS_LOST:.0%}, and the model would not learn to end: "
        f"raise max_length to {report.stops_kept_at:,}{keep_end}, or take the longest rows out"
    )


def readable(number: int) -> str:
    """A count: 12,345 or 1.23M."""
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (100_000, "k")):
        if number >= size:
            return f"{number / (1000 if unit == 'k' else size):.3g}{unit}"
    return f"{number:,}"
