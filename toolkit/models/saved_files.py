"""Whether the files of weights hold what was trained, tensor by tensor."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import TrainingError
from toolkit.models.digests import digest
from toolkit.models.finite import not_finite

KEPT = "; the files are kept, and count as unverified"


def check_finite(where: Any, tensors: Iterable[tuple[str, Tensor]], advice: str) -> None:
    """Refuse weights that hold a NaN or an infinity, naming the tensor.

    Args:
        where: what holds them, as the message is to name it.
        tensors: one after the other, each with its key.
        advice: what to do, as the end of a sentence.

    Raises:
        TrainingError: if there is one.
    """
    if key := not_finite(tensors):
        raise TrainingError(f"{where}: tensor {key} holds NaN or infinity{advice}")


def check_files(directory: Path) -> None:
    """Refuse a folder with a NaN or an infinity, or an adapter's tensor without numbers, by its key.

    Raises:
        TrainingError: likewise if a file of weights cannot be read.
    """
    advice = f"{KEPT}: lower learning_rate, or look at the last steps in log.jsonl"
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                keys = list(tensors.keys())
                empty = [key for key in keys if 0 in tensors.get_slice(key).get_shape()]
                if (
                    empty and file.name == SAFETENSORS_WEIGHTS_NAME
                ):  # as a sharded model may leave it
                    raise TrainingError(f"{file}: tensor {empty[0]} holds no numbers{KEPT}")
                check_finite(file, ((key, tensors.get_tensor(key)) for key in keys), advice)
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
    file = directory / SAFETENSORS_WEIGHTS_NAME
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
    file = directory / SAFETENSORS_WEIGHTS_NAME
    held = load_file(file) if expected and file.is_file() else {}
    for key, before in sorted(expected.items()):
        if key in loaded and key in held:
            before = digest(held[key].to(loaded[key].dtype))
        if key not in loaded or digest(loaded[key]) != before:
            said = "is not what was trained" if key in loaded else "is missing"
            raise TrainingError(f"{directory}: tensor {key} {said} once it is loaded{KEPT}")


def misplaced(model: PeftModel, keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """What an adapter's file lacks of what its configuration asks for, and what it holds besides.

    Args:
        model: with the adapter loaded, which passes over both.
        keys: of the tensors in its file.

    Returns:
        The keys of both, in order.
    """
    there = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    # PEFT adds the base's own matrices of a vocabulary that has grown
    known = there | set(model.state_dict())
    return sorted(there - set(keys)), sorted(set(keys) - known)
