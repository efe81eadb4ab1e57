"""Rows that several processes on one machine need alike: the first prepares them, the others read.

What `datasets` keeps in memory it would prepare again in each process. Within `together`, the first
of a machine writes to the cache of `datasets`, from where all of them map the same file into memory.
Elsewhere a process may be alone with what it does, and waits for nobody.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets.config as settings
from accelerate import PartialState
from datasets import Dataset
from torch import distributed

FOLDER = "toolkit"  # below the cache of `datasets`
_all_are_here = False


@contextmanager
def together() -> Iterator[None]:
    """Prepare rows once inside the block, through which every process goes."""
    global _all_are_here
    before, _all_are_here = _all_are_here, True
    try:
        yield
    finally:
        _all_are_here = before


def mapped(
    rows: Dataset, function: Callable[..., Any], *, fingerprint: str, **given: Any
) -> Dataset:
    """`rows.map(function, …)`, computed by one process of each machine where all are together.

    Args:
        rows: the same in every process.
        function: makes batches of others.
        fingerprint: says all that the result depends on.
        **given: to `Dataset.map`.
    """
    given |= {"new_fingerprint": fingerprint}
    if not (_all_are_here and several()):
        return rows.map(function, **given)
    place = Path(settings.HF_DATASETS_CACHE) / FOLDER / f"{fingerprint}.arrow"
    place.parent.mkdir(parents=True, exist_ok=True)
    with first_of_machine_first():
        found = rows.map(function, cache_file_name=str(place), load_from_cache_file=True, **given)
    found._fingerprint = fingerprint  # what is read from the cache has another, of its file
    return found


def several() -> bool:
    """Whether processes work together, and have joined."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Have the first process of each machine go through the block before the others.

    If it fails, the others go on too, and find the same fault.
    """
    state, is_first = PartialState(), int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not is_first:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if is_first:
            state.wait_for_everyone()
