"""Several processes that work on one stage: how many, which one this is, and where they meet.

The launcher says so in the environment, before anything is loaded.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

# What gloo, NCCL and torch's store say where another process is gone, or does not come.
PEER_GONE = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe",
    "Timed out waiting", "Application timeout caused pair closure", "wait timeout after",
    "Watchdog caught collective operation timeout", "Socket Timeout", "Read error", "Write error",
)  # fmt: skip

_waits = 1800.0  # TRL's default of ddp_timeout
_own_disks = False


def processes() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return process_index() == 0


def is_first_of_machine() -> bool:
    """Whether this process is the one that writes to this machine's disk."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def machines() -> int:
    """How many machines work together."""
    return processes() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", processes())))


def own_disks() -> bool:
    """Whether each machine has a disk of its own below `output_dir`, as `look_at_disks` has found."""
    return _own_disks


def writes_here() -> bool:
    """Whether this process is the one that changes files on the disk that it sees."""
    return is_first_of_machine() if own_disks() else is_first_process()


def on_cpu() -> bool:
    """Whether the work is done on the CPU: nothing else is there, or the launcher asks for it."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    return asked or not torch.accelerator.is_available()


def join(seconds: float) -> None:
    """Join the other processes, each of which waits no longer than this for another.

    transformers 5.23 hands `ddp_timeout` on to GPUs alone (training_args.py, _setup_devices), and
    whoever asks first for the processes decides.

    Args:
        seconds: `ddp_timeout`.
    """
    global _waits
    _waits = seconds
    if processes() > 1:
        PartialState(cpu=on_cpu(), timeout=timedelta(seconds=seconds))


def waits() -> float:
    """How many seconds a process waits for another."""
    return _waits


def device() -> torch.device:
    """Where this process computes."""
    found = PartialState(cpu=on_cpu()).device
    assert found is not None
    return found


def meet() -> None:
    """Wait until every process is here."""
    if processes() > 1:
        PartialState(cpu=on_cpu()).wait_for_everyone()


def from_first(value: Any) -> Any:
    """What the first process gives here, in every process."""
    if processes() == 1:
        return value
    PartialState(cpu=on_cpu())
    return broadcast_object_list([value])[0]


def largest(numbers: Sequence[int]) -> list[int]:
    """Each number as it is largest among the processes."""
    if processes() == 1 or not distributed.is_initialized():
        return list(numbers)
    found = torch.tensor(numbers, device=device())
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return [int(number) for number in found.tolist()]


def from_all(value: Any) -> list[Any]:
    """What each process gives here, in the order of their numbers."""
    return gather_object([value]) if processes() > 1 else [value]


def lost_another(error: BaseException) -> bool:
    """Whether this process stopped because another one is gone or did not come."""
    said = str(error)
    of_torch = isinstance(error, distributed.DistError | RuntimeError | ConnectionError)
    return processes() > 1 and of_torch and any(words in said for words in PEER_GONE)
