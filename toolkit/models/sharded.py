"""The proof of an adapter over a base that no process holds whole: FSDP2 has sharded it.

The base cannot be loaded a second time, so what is on disk takes the place of the adapter in memory,
shard by shard. Every process takes part in each step, since each forward pass gathers the weights.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from toolkit.errors import ToolkitError, TrainingError
from toolkit.models.digests import saved_tensors
from toolkit.models.proof import Check, Expected, compare, outcome, probe_values, tolerance
from toolkit.models.saved_files import check_file, check_files
from toolkit.models.value import VALUE


def prove_on_shards(
    directory: Path, expected: Expected, model: Any, check: Check
) -> dict[str, Any]:
    """Put what was saved into the sharded model, and compare it with what was trained.

    Args:
        directory: the saved adapter; the first process alone reads it.
        expected: what it must give, computed on the same shards.
        model: in memory, with that adapter, which is overwritten.
        check: which numbers are compared.

    Returns:
        What was compared, and the largest difference.

    Raises:
        TrainingError: on every process, as `proof.prove`.
    """
    folders = {"default": (directory, expected.tensors)}
    if expected.values is not None:
        folders[VALUE] = (directory / VALUE, expected.value_tensors)
    agree(files_fault(folders))
    for adapter, (folder, _) in folders.items():
        put_from_disk(model, adapter, folder)
    allowed = tolerance(model, elsewhere=False)
    numbers = check.numbers(model, expected.probe)
    difference = compare(directory, check.name, numbers, expected.numbers, allowed)
    found = outcome("resident_base", expected, difference, allowed)
    found["reason"] = "the model is sharded"
    if expected.values is not None:
        values = probe_values(model, expected.probe)
        found["largest_difference_of_values"] = compare(
            directory / VALUE, "values", values, expected.values, allowed
        )
    return found


def files_fault(folders: dict[str, tuple[Path, dict[str, str]]]) -> str | None:
    """What is wrong with the files of some adapters, as the first process sees them."""
    if not PartialState().is_main_process:
        return None
    try:
        for folder, tensors in folders.values():
            check_files(folder)
            check_file(folder, tensors)
            if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
                return f"{folder}: {SAFETENSORS_WEIGHTS_NAME} is missing"
    except ToolkitError as error:
        return str(error)
    return None


def agree(fault: str | None) -> None:
    """Have every process fail where the first one does; a process alone would wait for ever.

    Args:
        fault: what the first process found wrong, in one line.

    Raises:
        TrainingError: with that line.
    """
    told = [fault]
    broadcast_object_list(told)
    if told[0] is not None:
        raise TrainingError(told[0])


@torch.no_grad()
def put_from_disk(model: Any, adapter: str, folder: Path) -> None:
    """Overwrite an adapter in memory by the one in a folder; where that lacks a tensor, by NaN.

    Args:
        model: whose weights are sharded.
        adapter: its name in the model.
        folder: with its file, which was checked.
    """
    reads = PartialState().is_main_process
    stored: dict[str, Tensor] = load_file(folder / SAFETENSORS_WEIGHTS_NAME) if reads else {}
    for key, mine in sorted(saved_tensors(model, adapter).items()):
        whole = torch.full(mine.shape, torch.nan, dtype=mine.dtype, device=mine.device)
        if key in stored:
            whole.copy_(stored[key])
        if isinstance(mine, DTensor):  # the first process hands out the shards
            mine.copy_(distribute_tensor(whole, mine.device_mesh, mine.placements))
        else:
            torch.distributed.broadcast(whole, 0)
            mine.copy_(whole)
