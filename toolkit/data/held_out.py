"""Rows that are held out of training, and what of them is trained all the same."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from toolkit.data.plans import FIELDS
from toolkit.errors import DataError

BY_PROMPT = ("ranked", "prompt")
"""The forms of which a prompt is held out with all its rows."""
NAMED = 5  # how many rows a warning names


def split_off(rows: Dataset, size: float, *, form: str, seed: int) -> tuple[Dataset, Dataset, str]:
    """Training rows, held-out rows, and how many are held out, in words.

    Args:
        rows: all of them.
        size: a share below one, or a number; of prompts where they are held out, else of rows.
        form: of the rows, a key of `FIELDS`.
        seed: which are drawn.

    Raises:
        DataError: if one of the two would be empty.
    """
    if form not in BY_PROMPT:
        train, held_out = split_rows(rows, size, seed=seed)
        return train, held_out, f"{len(held_out):,} rows"
    prompts = list(digests(rows, ["prompt"]))
    index = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
    drawn = _drawn(len(index), size, seed, "prompts")
    is_out = np.isin(np.array([index[prompt] for prompt in prompts]), drawn)
    train, held_out = (rows.select(np.flatnonzero(mask)) for mask in (~is_out, is_out))
    return train, held_out, f"{len(drawn):,} prompts ({len(held_out):,} rows)"


def split_rows(rows: Dataset, size: float, *, seed: int) -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows, each in their order; the same for any number of processes.

    Args:
        rows: all of them.
        size: a share below one, or a number of rows.
        seed: which rows are drawn.

    Raises:
        DataError: if one of the two would be empty.
    """
    drawn = _drawn(len(rows), size, seed, "rows")
    is_out = np.isin(np.arange(len(rows)), drawn)
    return rows.select(np.flatnonzero(~is_out)), rows.select(np.flatnonzero(is_out))


def _drawn(total: int, size: float, seed: int, unit: str) -> np.ndarray:
    """Which of so many are held out."""
    count = int(size) if size >= 1 else round(size * total)
    if not 0 < count < total:
        raise DataError(
            f"test_split_size {size} of {total:,} {unit} would hold out {count:,}; both sides "
            f"need at least one {unit.removesuffix('s')}"
        )
    return np.random.default_rng(seed).permutation(total)[:count]


def leaked(train: Dataset, held_out: Dataset, form: str) -> list[str]:
    """Warnings if rows that are held out, or their prompts, are also trained; the first are named."""
    rows: dict[str, list[str]] = {}
    if form not in BY_PROMPT:
        rows["are training rows too"] = _on_both_sides(train, held_out, FIELDS[form])
    if form != "text":
        found = _on_both_sides(train, held_out, FIELDS[form][:1], asked=form == "messages")
        known = {place for places in rows.values() for place in places}
        rows["have a prompt that is trained too"] = [each for each in found if each not in known]
    return [
        f"warning: {len(places):,} of the {len(held_out):,} held-out rows {what} "
        f"({', '.join(places[:NAMED])}{', …' * (len(places) > NAMED)})"
        for what, places in rows.items()
        if places
    ]


def _on_both_sides(
    train: Dataset, held_out: Dataset, columns: Sequence[str], *, asked: bool = False
) -> list[str]:
    """The places of the held-out rows that have in these columns what a training row has."""
    trained = set(digests(train, columns, asked=asked))
    places = zip(held_out["source"], held_out["row"], strict=True)
    found = zip(places, digests(held_out, columns, asked=asked), strict=True)
    return [f"{Path(source).name}:{row}" for (source, row), each in found if each in trained]


def digests(rows: Dataset, columns: Sequence[str], *, asked: bool = False) -> Iterator[bytes]:
    """A digest of each row; where `asked`, of what comes before the last turn of the assistant's."""
    table: Any
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(1000):
        values = [column.to_pylist() for column in table.columns]
        if asked:
            values = [[_before_last_answer(json.loads(text)) for text in values[0]]]
        for row in zip(*values, strict=True):
            yield hashlib.blake2b(repr(row).encode(), digest_size=12).digest()


def _before_last_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    at = max(index for index, one in enumerate(messages) if one["role"] == "assistant")
    return messages[:at]
