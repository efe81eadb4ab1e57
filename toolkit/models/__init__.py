"""Bases, tokenizers, chat templates and adapters: what is loaded, and what is trained of it."""

import os
from contextlib import suppress

import torch


def import_bitsandbytes() -> None:
    """Import bitsandbytes, as PEFT does wherever it is installed, but without torch's compiler.

    bitsandbytes 0.50 (backends/default/ops.py) has it made ready for kernels of devices that have none
    of their own, and that takes an eighth of the time until a trainer is there. CPU and CUDA have theirs.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type != "cuda":
        return
    name = "TORCHDYNAMO_DISABLE"  # which torch.compile reads when it is called
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with suppress(ImportError):
            import bitsandbytes  # noqa: F401
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


import_bitsandbytes()
