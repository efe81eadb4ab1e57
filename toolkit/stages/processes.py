"""Several processes that work on one stage: how many, which one this is, and where they meet.

The launcher says so in the environment, before anything is loaded.
"""

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


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


def on_cpu() -> bool:
    """Whether the work is done on the CPU: nothing else is there, or the launcher asks for it."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    return asked or not torch.accelerator.is_available()


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
