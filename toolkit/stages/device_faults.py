"""What a device lacks, in one line: memory, or an operation that torch has not written for it."""

import re

import torch

from toolkit.errors import TrainingError

MISSING = re.compile(
    r"operator '([^']+)' is not currently (?:implemented|supported) (?:for|on) the (\w+)"
)
FULL = "backend out of memory"  # as MPS says it, in a RuntimeError


def of_device(error: BaseException) -> TrainingError | None:
    """What to say of an error that comes from the device; None if it does not.

    Args:
        error: torch's.
    """
    if (found := MISSING.search(str(error))) is not None:
        operation, device = found.groups()
        fallback = "; PYTORCH_ENABLE_MPS_FALLBACK=1 before the command computes it on the CPU"
        return TrainingError(
            f"{operation} is not implemented on {device} in torch {torch.__version__}"
            + (fallback if device == "MPS" else "; ACCELERATE_USE_CPU=true trains on the CPU")
        )
    if isinstance(error, torch.OutOfMemoryError) or FULL in str(error):
        return TrainingError(
            f"the device has not enough memory ({str(error).splitlines()[0]}); lower "
            "per_device_train_batch_size (global_batch_size keeps the training the same), "
            "max_length, or load the base in 4-bit with load_in_4bit: true"
        )
    return None
