"""Batches of several processes that hold each row once, so that two processes are as one.

Where the rows do not divide, accelerate (1.15, data_loader.py, BatchSamplerShard) repeats the first
rows of the epoch, which are then trained twice; here the batches are filled with a row without loss.
"""

from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, concatenate_datasets
from torch.utils.data import BatchSampler, DataLoader

from toolkit.data.sequences import IGNORED

BLANK_TOKENS = 2  # the fewest of which a model can foretell one


def with_blanks(rows: Dataset, number: int) -> Dataset:
    """Rows, and behind them some that carry no loss."""
    if not number:
        return rows
    first = rows[0]
    blank: dict[str, Any] = first | {
        "input_ids": first["input_ids"][:BLANK_TOKENS],
        "labels": [IGNORED] * BLANK_TOKENS,
        "seq_lengths": [BLANK_TOKENS],
    }
    columns = {name: [blank[name]] * number for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(columns, features=rows.features)])


def fill(loader: DataLoader[Any], blank: int, processes: int) -> None:
    """Have a loader that accelerate has prepared fill up its batches with the row `blank`.

    A sampler that makes whole batches of its own, such as `batch_rebalance`, stays as it is.
    """
    shard = loader.batch_sampler
    if isinstance(shard, BatchSamplerShard) and type(shard.batch_sampler) is BatchSampler:
        among = 1 if shard.split_batches else processes
        shard.batch_sampler = FilledBatches(shard.batch_sampler, blank, among)


class FilledBatches(BatchSampler):
    """Batches that are all full, and as many as the processes share evenly.

    Args:
        batches: of which the last may be short.
        blank: index of the row that fills.
        processes: how many share them.
    """

    def __init__(self, batches: BatchSampler, blank: int, processes: int):
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        self.blank = blank
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of one epoch."""
        for batch in super().__iter__():
            yield [*batch, *[self.blank] * (self.batch_size - len(batch))]
        for _ in range(len(self) - super().__len__()):
            yield [self.blank] * self.batch_size

    def __len__(self) -> int:
        number = super().__len__()
        return number if self.drop_last else number + -number % self.processes
