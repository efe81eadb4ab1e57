"""What became of the rows: how many sequences and tokens, and what was split, cut or lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

NAMED_ROWS = 5  # how many rows a report names


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
        rows_unanswered: rows without an assistant turn, which are not trained.
        rows_overlong: rows whose trained tokens were all cut off, which are not trained.
        turns_lost: sequences of other rows whose trained tokens were all cut off.
        rows_single: rows of which one token only is trained.
        named: the first rows of each such count, by its name.
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
    rows_unanswered: int
    rows_overlong: int
    turns_lost: int
    rows_single: int
    named: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def rows_lost(self) -> int:
        """Rows that are not trained."""
        return self.rows_unanswered + self.rows_overlong

    def lines(self) -> list[str]:
        """The report in words: what is trained, then one line for everything that was changed."""
        share = self.trained_tokens / max(1, self.tokens)
        lines = [
            f"{self.rows:,} rows → {self.sequences:,} sequences, {readable(self.tokens)} tokens, "
            f"{share:.0%} trained: {self.mode}; the longest has {self.longest:,}"
        ]
        verb = "loses its" if self.rows_stop_lost == 1 else "lose their"
        stops = f"; {self.rows_stop_lost:,} {verb} stop token" if self.rows_stop_lost else ""
        changes = {
            "rows_split": "split, one sequence per assistant turn: the template renders earlier "
            "turns otherwise than when they were generated",
            "rows_cut": f"cut at max_length {self.max_length}{stops}",
            "rows_unanswered": "lost, not trained: no assistant turn",
            "rows_overlong": "lost, not trained: no trained token within max_length "
            f"{self.max_length}",
            "turns_lost": f"lost, not trained: what precedes fills max_length {self.max_length}",
            "rows_single": "with one trained token only",
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
) -> SequenceReport:
    """The account of some sequences.

    Args:
        counts: for every sequence, in order, `at`, its place among all; `part`, its place in its
            row; `length`, its tokens before the cut; `last_trained`, the index of its last trained
            token; `trained`, how many tokens are trained before the cut; `kept`, after it.
        row_name: what to call the row of the sequence at a place.
        mode: what carries loss.
        max_length: where sequences were cut.
    """
    kept, begins = counts["kept"], np.flatnonzero(counts["part"] == 0)
    limit = np.iinfo(np.int64).max if max_length is None else max_length
    length = np.minimum(counts["length"], limit)

    def per_row(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values.astype(np.int64), begins) if len(begins) else values[:0]

    row_kept = per_row(kept)
    row_of = np.cumsum(counts["part"] == 0) - 1
    is_lost = row_kept == 0
    rows = {
        "rows_split": per_row(np.ones_like(kept)) > 1,
        "rows_cut": per_row(counts["length"] > limit) > 0,
        "rows_stop_lost": per_row((kept > 0) & (counts["last_trained"] >= limit)) > 0,
        "rows_unanswered": is_lost & (per_row(counts["trained"]) == 0),
        "rows_overlong": is_lost & (per_row(counts["trained"]) > 0),
        "rows_single": row_kept == 1,
    }
    places = {name: counts["at"][begins[mask]] for name, mask in rows.items()}
    places["turns_lost"] = counts["at"][(kept == 0) & ~is_lost[row_of]]
    return SequenceReport(
        mode=mode,
        max_length=max_length,
        rows=len(begins),
        sequences=int((kept > 0).sum()),
        tokens=int(length[kept > 0].sum()),
        trained_tokens=int(kept.sum()),
        longest=int(counts["length"].max(initial=0)),
        named={k: [row_name(int(at)) for at in found[:NAMED_ROWS]] for k, found in places.items()},
        **{name: len(found) for name, found in places.items()},
    )


def readable(number: int) -> str:
    """A count: 12,345 or 1.23M."""
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (100_000, "k")):
        if number >= size:
            return f"{number / (1000 if unit == 'k' else size):.3g}{unit}"
    return f"{number:,}"
