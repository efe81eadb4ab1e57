"""Batches of several processes that hold each row once, so that two processes are as one.

Where the rows do not divide, accelerate (1.15, data_loader.py, BatchSamplerShard) repeats the first
rows of the epoch, which are then trained twice; here the batches are filled with a row without loss.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, concatenate_datasets
from torch.utils.data import BatchSampler, DataLoader, Sampler

Blank = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class BlankRows:
    """For a Trainer: on several processes its last training row is blank, never drawn, and fills."""

    accelerator: Any
    train_dataset: Any
    filled = False

    def fill_with(self, blank: Blank) -> None:
        """Have what does not divide filled, at the end of the trainer's construction.

        Args:
            blank: makes a row without loss of any row.
        """
        self.filled = self.accelerator.num_processes > 1
        if self.filled:
            self.train_dataset = with_blanks(self.train_dataset, 1, blank)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.filled:
            rows = rows.select(range(len(rows) - 1))
        return super()._get_train_sampler(rows)  # type: ignore[misc]

    def get_train_dataloader(self) -> DataLoader:
        """The loader, on several processes filled with the blank row where theirs would repeat."""
        loader: Any = super().get_train_dataloader()  # type: ignore[misc]
        if self.filled:
            fill(loader, len(loader.dataset) - 1, self.accelerator.num_processes)
        return loader


def with_blanks(rows: Dataset, number: int, blank: Blank) -> Dataset:
    """Rows, and behind them some that carry no loss.

    Args:
        rows: all of them.
        number: how many blank ones follow.
        blank: makes one of any row.
    """
    if not number:
        return rows
    row = blank(rows[0])
    columns = {name: [row[name]] * number for name in rows.column_names}
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
