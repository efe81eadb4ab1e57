"""Work on rows that several processes share: how many, and what of it a user sees."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from datasets import Dataset

from toolkit.errors import DataError

BYTES_A_WORKER = 8 << 20  # fewer are not worth a process
MOST_WORKERS = 8  # each takes some 100 MB; dataset_num_proc asks for more
DIED = "abruptly died"  # as datasets 5.2 says it


def bytes_of(rows: Dataset) -> int:
    """About how large rows are in memory."""
    return rows.data.nbytes * len(rows) // max(1, rows.data.num_rows)


def workers(rows: Dataset, among: int = 1) -> int | None:
    """How many processes the rows are worth on this machine; None for this one alone.

    Args:
        rows: what is worked on.
        among: how many processes of this machine do such work at the same time.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    count = min(cores // among, MOST_WORKERS, bytes_of(rows) // BYTES_A_WORKER)
    return count if count > 1 else None


def shared(rows: Dataset, function: Callable[..., Any], **given: Any) -> Dataset:
    """`rows.map(function, …)`, whose workers end with this process, and without a word.

    Raises:
        DataError: if one of them was killed.
    """
    with _interrupted_alone():
        try:
            return rows.map(function, **given)
        except Exception as error:
            # `datasets` asks its workers once more while it is interrupted, and says that instead
            if (interrupted := _interruption(error)) is not None:
                raise interrupted from None
            if not (isinstance(error, RuntimeError) and DIED in str(error)):
                raise
            raise DataError(
                "a process that prepared rows was killed, as for lack of memory; write fewer: "
                "dataset_num_proc: 1"
            ) from error


def _interruption(error: BaseException) -> KeyboardInterrupt | None:
    """What interrupted the work that has ended with an error; None if nothing has."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__context__
    return seen


@contextmanager
def _interrupted_alone() -> Iterator[None]:
    """Have what is forked in the block pass over Ctrl-C, which comes to every process of a terminal."""
    owner, before = os.getpid(), signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            before(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
