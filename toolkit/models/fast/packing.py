"""The rows of a batch without their padding, one behind the other, shared beginnings once.

What a causal model makes of a token depends on the tokens before it alone. So padding need not be
computed, and neither need the second copy of a beginning: the prompt of a group of completions, of a
chosen and a rejected answer, the system prompt of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.models.fast.attention import Part

SHARED = 8
"""The fewest tokens of a beginning that is worth a part of its own."""


@dataclass(frozen=True)
class Row:
    """The tokens of one sequence.

    Attributes:
        ids: token ids.
        slot: where the first of them is in the flattened batch.
        position: that token's position.
    """

    ids: list[int]
    slot: int
    position: int


@dataclass(frozen=True)
class Packed:
    """What is computed in place of a batch.

    Attributes:
        slots: which slots of the flattened batch are computed, (N,).
        positions: the position of each, (N,).
        places: where each slot of the batch finds its own, (B * T,); 0 for padding.
        parts: how the N belong together.
    """

    slots: Tensor
    positions: Tensor
    places: Tensor
    parts: tuple[Part, ...]


def rows_of(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> list[Row] | None:
    """The sequences of a batch: one in each of its rows, or several in its only one.

    Args:
        input_ids: of shape (B, T).
        attention_mask: 1 on tokens; None if all are.
        position_ids: where there are several in a row, of shape (1, T); they begin anew at 0.

    Returns:
        None if the tokens of a row are not in one piece, or the positions not counted on.
    """
    length = input_ids.shape[1]
    if position_ids is not None:
        if attention_mask is not None or len(input_ids) != 1 or len(position_ids) != 1:
            return None
        positions, ids = position_ids[0], input_ids[0].tolist()
        starts = [0, *(1 + (positions.diff() != 1).nonzero()[:, 0]).tolist()]
        if positions[starts].any():
            return None
        return [
            Row(ids[start:end], start, 0)
            for start, end in zip(starts, [*starts[1:], length], strict=True)
        ]
    if attention_mask is None:
        return [Row(ids, at * length, 0) for at, ids in enumerate(input_ids.tolist())]
    mask = attention_mask.bool()
    sizes, firsts = mask.sum(1), mask.int().argmax(1)
    columns = torch.arange(length, device=mask.device)
    if not torch.equal(
        mask, (columns >= firsts[:, None]) & (columns < (firsts + sizes)[:, None])
    ) or not bool(sizes.all()):
        return None
    bounds = zip(input_ids.tolist(), firsts.tolist(), sizes.tolist(), strict=True)
    return [
        Row(ids[first : first + size], at * length + first, first)
        for at, (ids, first, size) in enumerate(bounds)
    ]


def grouped(rows: Sequence[Row]) -> list[tuple[int, list[int]]]:
    """Which rows share their beginning, and how many tokens of it, so that most is saved.

    Returns:
        Groups of rows, each with the length that they share; 0 for a row by itself.
    """
    order = sorted(range(len(rows)), key=lambda at: (rows[at].position, rows[at].ids))
    groups: list[tuple[int, list[int]]] = []
    for at in order:
        if groups:
            share, members = groups[-1]
            first = rows[members[0]]
            share = share or len(first.ids)
            common = alike(first.ids[:share], rows[at].ids)
            # what the group no longer shares is computed again for each of its members
            gained = common - len(members) * (share - common) if len(members) > 1 else common
            if first.position == rows[at].position and min(common, gained) >= SHARED:
                groups[-1] = common, [*members, at]
                continue
        groups.append((0, [at]))
    return groups


def alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def pack(rows: Sequence[Row], slots: int) -> Packed:
    """Lay rows one behind the other.

    Args:
        rows: of a batch.
        slots: how many the flattened batch has.
    """
    taken: list[Tensor] = []
    positions: list[Tensor] = []
    places = torch.zeros(slots, dtype=torch.long)
    parts: list[Part] = []
    total = 0

    def lay(row: Row, start: int, end: int, beginning: int | None) -> None:
        nonlocal total
        taken.append(torch.arange(row.slot + start, row.slot + end))
        positions.append(torch.arange(row.position + start, row.position + end))
        places[row.slot + start : row.slot + end] = torch.arange(total, total + end - start)
        parts.append(Part(end - start, beginning))
        total += end - start

    for share, members in grouped(rows):
        shared = len(parts) if share else None
        first = rows[members[0]]
        begin = total
        if share:
            lay(first, 0, share, None)
        for row in (rows[at] for at in members):
            places[row.slot : row.slot + share] = torch.arange(begin, begin + share)
            if share < len(row.ids):
                lay(row, share, len(row.ids), shared)
    return Packed(torch.cat(taken), torch.cat(positions), places, tuple(parts))
