"""Rows that break a rule: the first one stops the run, unless so many may be left out.

What reads rows marks each bad one in a column, with the reason; who reads them next takes it away.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from toolkit.data.columns import PLACE
from toolkit.errors import DataError

BROKEN = "__broken__"
"""The column that says what is wrong with a row; null where nothing is."""
LISTED = 5  # how many bad rows are named


@dataclass
class BadRows:
    """The bad rows of a stage, its held-out ones included.

    Attributes:
        most: how many may be left out; None where no recipe could say so.
        found: those that were, each as `file:line` and what is wrong there.
    """

    most: int | None = None
    found: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set, repr=False)

    @property
    def stops_at_first(self) -> bool:
        """Whether one bad row is one too many."""
        return not self.most

    def add(self, source: str, row: int, message: str) -> None:
        """Count one bad row; once, though its file may be read for several splits.

        Args:
            source: its file.
            row: its line.
            message: what is wrong, with the place of the row or without.

        Raises:
            DataError: if it is one too many.
        """
        reason = message.removeprefix(f"{source}, row {row}").lstrip(",: ")
        if not self.most:
            go_on = "" if self.most is None else ", or set max_bad_rows to go on without it"
            raise DataError(f"{message}; mend the row{go_on}")
        self.count(f"{source}:{row}: {reason}")

    def count(self, line: str) -> None:
        """Count a bad row by its line in `found`.

        Raises:
            DataError: if it is one too many.
        """
        if line not in self._known:
            self._known.add(line)
            self.found.append(line)
        if self.most is not None and len(self.found) > self.most:
            raise DataError(
                f"over {self.most:,} bad rows, which is all that max_bad_rows allows: "
                f"{'; '.join(self.found[:LISTED])}"
            )

    def lines(self) -> list[str]:
        """How many were left out, and the first of them; nothing if none was."""
        count = len(self.found)
        if not count:
            return []
        counted = f"{count:,} bad row{'s' * (count > 1)} left out, of at most {self.most:,}"
        first = "" if count <= LISTED else f"; the first {LISTED}:"
        return [f"warning: {counted} (max_bad_rows){first}", *self.found[:LISTED]]

    def record(self) -> dict[str, Any]:
        """The same for the manifest, which may be published: file names, and nothing of a row."""
        places = [found.split(": ", 1)[0] for found in self.found[:LISTED]]
        return {"count": len(self.found), "first": [Path(place).name for place in places]}

    def taken_from(self, rows: Dataset) -> Dataset:
        """The rows that are not bad; the others are counted.

        Args:
            rows: with the columns `BROKEN`, `source` and `row`.

        Raises:
            DataError: if too many are bad, or all.
        """
        table: Any = rows.select_columns([BROKEN, *PLACE]).with_format("arrow")[:]
        is_bad = table.column(BROKEN).is_valid().to_numpy()
        for bad in table.filter(is_bad).to_pylist():
            place = f"{bad['source']}, row {bad['row']}"
            self.add(bad["source"], bad["row"], f"{place}, {bad[BROKEN]}")
        if is_bad.all() and self.found:
            raise DataError(f"all {len(rows):,} rows are bad: {'; '.join(self.found[:LISTED])}")
        rows = rows.remove_columns(BROKEN)
        return rows.select(np.flatnonzero(~is_bad)) if is_bad.any() else rows
