"""Rows that are prepared once: for all processes of a machine, and for the next run.

What `datasets` keeps in memory it would prepare again in each process and each run. Many rows are
written to its cache, from where they are mapped into memory, and are prepared by several workers.
Within `together`, the first process of a machine does so with few rows too, and the others read.
Elsewhere a process may be alone with what it does, and waits for nobody.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets.config as settings
import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset
from torch import distributed

from toolkit.data.workers import bytes_of, shared, workers
from toolkit.errors import DataError

FOLDER = "toolkit"  # below the cache of `datasets`
LARGE = 16 << 20  # bytes of rows; fewer are prepared again in seconds
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
    rows: Dataset,
    function: Callable[..., Any],
    *,
    fingerprint: str,
    num_proc: int | None = None,
    **given: Any,
) -> Dataset:
    """`rows.map(function, …)`; of many rows kept for the next run, and made by several workers.

    Args:
        rows: the same in every process.
        function: makes batches of others.
        fingerprint: says all that the result depends on.
        num_proc: how many workers share the work; None for as many as the rows are worth.
        **given: to `Dataset.map`.

    Raises:
        DataError: if the cache cannot be written, or a worker was killed.
    """
    among = 1 if _all_are_here else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    given |= {"new_fingerprint": fingerprint, "num_proc": num_proc or workers(rows, among)}
    if bytes_of(rows) < LARGE and not (_all_are_here and several()):
        return shared(rows, function, **given)
    with kept_at(fingerprint) as place:
        given |= {"cache_file_name": str(place), "load_from_cache_file": True}
        known = list(place.parent.glob(f"{place.stem}*"))
        try:
            found = shared(rows, function, **given)
        except (pa.ArrowInvalid, OSError):
            if not known:
                raise
            for file in known:  # one is cut off, as by a machine that went down
                file.unlink(missing_ok=True)
            found = shared(rows, function, **given)
    found._fingerprint = fingerprint  # what is read from the cache has another, of its file
    return found


@contextmanager
def kept_at(fingerprint: str) -> Iterator[Path]:
    """Where rows are kept; where all processes are together, the first of a machine is there first.

    Raises:
        DataError: if what the block does there cannot be written.
    """
    place = Path(settings.HF_DATASETS_CACHE) / FOLDER / f"{fingerprint}.arrow"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if _all_are_here and several():
            with first_of_machine_first():
                yield place
        else:
            yield place
    except OSError as error:
        raise DataError(
            f"{place.parent}: the prepared rows cannot be written: {error.strerror or error}; make "
            "room there, or set HF_DATASETS_CACHE to another folder"
        ) from error


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
