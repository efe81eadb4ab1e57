"""Which rows of the data a batch holds, for a message: looked up only once something is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset

from toolkit.data.chat_tokens import IGNORED

SHOWN = 8  # rows that a message names
SEQUENCE = (("input_ids",), ("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids"))
"""The columns that make a sequence, in each kind of training data."""


def rows_of(batches: Sequence[Any], dataset: Any) -> str:
    """The rows of some batches, such as `chats.jsonl row 3, row 7`; empty where they are not known.

    Args:
        batches: as a trainer's step is given them.
        dataset: what the trainer draws from, with the columns `source` and `row`.
    """
    found = dict.fromkeys(place for batch in batches for place in places(batch, dataset))
    shown, source = [], None
    for number, (where, row) in enumerate(found):
        if number == SHOWN:
            shown.append(f"and {len(found) - SHOWN:,} more")
            break
        shown.append(f"row {row}" if where == source else f"{where} row {row}")
        source = where
    return ", ".join(shown)


def places(batch: Any, dataset: Any) -> Iterator[tuple[str, int]]:
    """Source and row of what a batch holds, as far as the data set knows."""
    if isinstance(batch, list):  # of rollouts, the rows themselves
        yield from ((row["source"], row["row"]) for row in batch if {"source", "row"} <= {*row})
        return
    if not isinstance(dataset, Dataset) or not {"source", "row"} <= {*dataset.column_names}:
        return
    known = Dataset.select_columns(dataset, ["source", "row"])
    if "pair" in batch:
        indices = [index for index in batch["pair"].tolist() if index >= 0]
    else:
        wanted = set(sequences_in(batch))
        indices = [index for index, ids in sequences_of(dataset) if ids in wanted]
    for index in indices:
        row: Any = known[index]
        yield row["source"], row["row"]


def sequences_in(batch: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """The sequences of a batch, padded to one length or laid end to end, less those without loss."""
    ids, labels = batch["input_ids"], batch.get("labels")
    trained = torch.ones_like(ids) if labels is None else labels != IGNORED
    if (starts := batch.get("position_ids")) is not None:
        cuts = [*(starts[0] == 0).nonzero()[:, 0].tolist(), ids.shape[1]]
        for a, b in pairwise(cuts):
            if trained[0, a:b].any():
                yield tuple(ids[0, a:b].tolist())
        return
    mask = batch.get("attention_mask")
    there = torch.ones_like(ids) if mask is None else mask
    for row in range(len(ids)):
        if trained[row].any():
            yield tuple(ids[row][there[row].bool()].tolist())


def sequences_of(dataset: Dataset) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Every sequence that a data set gives, with its index."""
    for columns in SEQUENCE:
        if not {*columns} <= {*dataset.column_names}:
            continue
        for index, row in enumerate(dataset.select_columns(list(columns))):
            yield index, tuple(token for column in columns for token in row[column])  # type: ignore
