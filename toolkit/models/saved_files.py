"""Whether the files of weights hold what was trained, tensor by tensor."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import TrainingError
from toolkit.models.digests import digest

ADAPTER_FILE = "adapter_model.safetensors"
KEPT = "; the files are kept, and count as unverified"


def check_finite(directory: Path) -> None:
    """Refuse a folder that holds a NaN or an infinity, naming the tensor.

    Raises:
        TrainingError: likewise if a file of weights cannot be read.
    """
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is not a dict
                    if not torch.isfinite(tensors.get_tensor(key).float()).all():
                        raise TrainingError(
                            f"{file}: tensor {key} holds NaN or infinity{KEPT}: lower "
                            "learning_rate, or look at the last steps in log.jsonl"
                        )
        except SafetensorError as error:
            raise TrainingError(f"{file}: cannot be read ({error}){KEPT}") from error


def check_file(directory: Path, expected: Mapping[str, str]) -> None:
    """Refuse an adapter's file whose tensors are not, to the bit, those that were trained.

    Args:
        directory: the adapter's folder; a whole model is compared once it is loaded.
        expected: the digests of what was trained; nothing is known if it is empty.

    Raises:
        TrainingError: naming the tensor.
    """
    file = directory / ADAPTER_FILE
    if not expected or not file.is_file():
        return
    with safe_open(file, framework="pt") as tensors:
        found = set(tensors.keys())
        for key in sorted({*expected, *found}):
            said = ""
            if key not in found:
                said = "was trained and is missing"
            elif key not in expected:
                said = "was never trained"
            elif digest(tensors.get_tensor(key)) != expected[key]:
                said = "is not what was trained"
            if said:
                raise TrainingError(f"{file}: tensor {key} {said}{KEPT}")


def check_loaded(
    directory: Path, loaded: Mapping[str, Tensor], expected: Mapping[str, str]
) -> None:
    """Refuse what was loaded if a tensor is not, to the bit, what was trained.

    PEFT 0.21 rounds a module that is trained whole, such as a head, to the precision of the base.

    Args:
        directory: what was loaded.
        loaded: what arrived in the model, by the file's keys.
        expected: the digests of what was trained; nothing is known if it is empty.

    Raises:
        TrainingError: naming the tensor.
    """
    file = directory / ADAPTER_FILE
    held = load_file(file) if expected and file.is_file() else {}
    for key, before in sorted(expected.items()):
        if key in loaded and key in held:
            before = digest(held[key].to(loaded[key].dtype))
        if key not in loaded or digest(loaded[key]) != before:
            said = "is not what was trained" if key in loaded else "is missing"
            raise TrainingError(f"{directory}: tensor {key} {said} once it is loaded{KEPT}")
