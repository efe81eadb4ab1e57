"""A batch on its way: equal prompts are read once, and who has ended makes no more steps.

Half of the rows of a batch have often ended after a quarter of its steps, and the samples of a
question have one prompt. The loop is transformers' `generate`, some steps at a time, over a cache
that is handed on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from toolkit.models.cache import RoomyLayer, with_room

STEPS = 8
"""Between two looks at who has ended. Measured on 2,560 completions of 17 tokens, at most 64: with
4, 8 and 16 steps 7.4, 7.5 and 8.6 s; 13.1 s without looking."""


class Batch:
    """The rows that have not ended, with what the model has read of them.

    Args:
        prompts: token ids, at least one of each.
        pad_id: what fills shorter prompts on the left.
        device: where the model is.

    Attributes:
        rows: which prompts are left, by their position; B of them.
        starts: where the completion of each row begins, behind its padded prompt.
        input_ids: their tokens, padding included; shape (B, L).
        mask: 1 where there is a token and not padding; the same shape.
        cache: what the model remembers of them; None if nothing.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], pad_id: int, device: Any):
        length = max(map(len, prompts))
        self.pad_id = pad_id
        self.rows = list(range(len(prompts)))
        self.starts = [length] * len(prompts)
        pads = [length - len(prompt) for prompt in prompts]
        filled = [[pad_id] * pad + [*ids] for pad, ids in zip(pads, prompts, strict=True)]
        kept = [[0] * pad + [1] * (length - pad) for pad in pads]
        self.input_ids = torch.tensor(filled, device=device)
        self.mask = torch.tensor(kept, device=device)
        self.cache: DynamicCache | None = None
        self.cache_fits = True
        first: dict[tuple[int, ...], int] = {}
        self._same = [first.setdefault(tuple(ids), row) for row, ids in enumerate(prompts)]
        self._shortest = min(map(len, prompts))

    def shared(self) -> dict[str, Tensor] | None:
        """The different prompts without their last tokens; None if no two prompts are equal.

        What the model remembers of them goes to `spread`.
        """
        different = sorted(set(self._same))
        if len(different) == len(self.rows) or self._shortest < 2:
            return None
        rows = torch.tensor(different, device=self.mask.device)
        return {
            "input_ids": self.input_ids[rows, :-1],
            "attention_mask": self.mask[rows, :-1],
        }

    def spread(self, cache: Any) -> None:
        """Give each row what the model remembers of its prompt."""
        self._keep_cache(cache)
        if self.cache is not None:
            place = {row: index for index, row in enumerate(sorted(set(self._same)))}
            self._select_cache([place[row] for row in self._same])

    def inputs(self) -> dict[str, Any]:
        """What `generate` goes on with."""
        known = {} if self.cache is None else {"past_key_values": self.cache}
        return {"input_ids": self.input_ids, "attention_mask": self.mask, **known}

    def extend(self, input_ids: Tensor, cache: Any) -> list[list[int]]:
        """Take in what `generate` gives back.

        Args:
            input_ids: shape (B, L + the new ones).
            cache: what the model remembers.

        Returns:
            What each row has been given so far.
        """
        new = input_ids.shape[1] - self.input_ids.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), new)], dim=1)
        self.input_ids = input_ids
        self._keep_cache(cache)
        return self.written()

    def written(self) -> list[list[int]]:
        """What each row has been given so far."""
        rows = zip(self.input_ids.tolist(), self.starts, strict=True)
        return [ids[start:] for ids, start in rows]

    def keep(self, places: Sequence[int]) -> None:
        """Go on with some of the rows.

        Args:
            places: where they stand among those that are left.
        """
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        self.starts = [self.starts[place] for place in places]
        index = torch.tensor(places, dtype=torch.long, device=self.mask.device)
        self.input_ids, self.mask = self.input_ids[index], self.mask[index]
        if self.cache is not None and places:
            self._select_cache(places)

    def next_steps(self, longest: int) -> int:
        """How many steps to make before the next look, of `longest` in all."""
        left = longest - (self.input_ids.shape[1] - min(self.starts))
        return min(STEPS, left) if self.cache_fits else left

    @property
    def can_join(self) -> bool:
        """Whether rows of this batch and of another can go on together."""
        layers = self.cache.layers if self.cache is not None else [None]
        return all(type(layer) in (DynamicLayer, RoomyLayer) for layer in layers)

    def join(self, other: "Batch") -> None:
        """Take in the rows of another batch, which then has none.

        Both have been read, and `can_join`; the rows of the other have positions of their own.
        """
        length = max(self.input_ids.shape[1], other.input_ids.shape[1])
        for batch in (self, other):
            batch._shift(length - batch.input_ids.shape[1])
        self.rows, self.starts = self.rows + other.rows, self.starts + other.starts
        self.input_ids = torch.cat([self.input_ids, other.input_ids])
        self.mask = torch.cat([self.mask, other.mask])
        for mine, theirs in zip(*(batch._layers() for batch in (self, other)), strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])
        other.rows = []

    def trim(self) -> None:
        """Drop the columns in which there is nothing but padding."""
        if self.rows:
            self._shift(-int((self.mask.cumsum(dim=1) == 0).all(dim=0).sum()))

    def _shift(self, by: int) -> None:
        """Put so many columns of padding in front, or take them away."""
        if by == 0:
            return
        self.starts = [start + by for start in self.starts]
        self.input_ids = pad(self.input_ids, (by, 0), value=self.pad_id)
        self.mask = pad(self.mask, (by, 0))
        for layer in self._layers():
            layer.keys, layer.values = (
                pad(layer.keys, (0, 0, by, 0)),
                pad(layer.values, (0, 0, by, 0)),
            )

    def _layers(self) -> list[Any]:
        return list(self.cache.layers) if self.cache is not None else []

    def _keep_cache(self, cache: Any) -> None:
        """Keep a cache whose rows can be chosen; a model with another kind reads its rows anew."""
        layers = getattr(cache, "layers", None) or [None]
        self.cache_fits = isinstance(cache, DynamicCache) and all(
            isinstance(layer, DynamicLayer) for layer in layers
        )
        self.cache = with_room(cache) if self.cache_fits else None

    def _select_cache(self, places: Sequence[int]) -> None:
        assert self.cache is not None
        self.cache.reorder_cache(torch.tensor(places, dtype=torch.long))  # type: ignore[arg-type]
