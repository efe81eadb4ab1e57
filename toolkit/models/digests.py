"""Digests of weights in memory: which of them moved, and whether what was saved is what was trained."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from toolkit.models.heads import SCORE
from toolkit.models.switching import adapter_weights

WHOLE = "model"


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and numbers, the same on every device.

    The same numbers have the same digest in any precision that holds them: PEFT loads in float32.
    """
    held: Any = tensor.detach()
    if hasattr(held, "full_tensor"):  # sharded: every process asks for it at the same time
        held = held.full_tensor()
    return _sha256(held.float() if held.is_floating_point() else held)


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The digest of each tensor, by its name."""
    return {name: digest(tensor) for name, tensor in tensors.items()}


def fingerprint(tensor: Tensor) -> str:
    """What changes with any bit of a tensor, at the speed of the memory it lies in.

    It is the same for as long as the tensor stays on its device, and not elsewhere.
    """
    held = tensor.detach()
    # Apple's devices have no float64, and the CPU's memory
    return _sha256(held) if held.device.type in ("cpu", "mps") else reduced(held)


def reduced(tensor: Tensor) -> str:
    """A fingerprint that an accelerator makes without a copy of the tensor."""
    some = tensor.dim() and tensor.numel()
    rows = tensor.reshape(-1, tensor.shape[-1]) if some else tensor.reshape(1, -1)
    # equal numbers cancel in the exclusive or, and changes of opposite sign in the sum
    bits = torch.hash_tensor(rows, dim=-1).view(torch.int64)
    sums = rows.sum(dim=-1, dtype=torch.float64 if rows.is_floating_point() else torch.int64)
    return f"{_sha256(bits)} {_sha256(sums)}"


def _sha256(tensor: Tensor) -> str:
    """Of shape and bytes, in hexadecimal, cut to 128 bits."""
    found = hashlib.sha256(str(tuple(tensor.shape)).encode())
    held: Any = tensor.reshape(-1).cpu().contiguous().view(torch.uint8).numpy()
    found.update(held)
    return found.hexdigest()[:32]


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fingerprint of each tensor, by its name."""
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}


@dataclass
class Start:
    """What training starts from.

    Attributes:
        base: fingerprints of the frozen weights below every adapter; empty for a whole model.
        trained: of what is trained, by adapter the digests; of a `WHOLE` model the fingerprints.
    """

    base: dict[str, str] = field(default_factory=dict)
    trained: dict[str, dict[str, str]] = field(default_factory=dict)


def base_weights(model: PeftModel) -> dict[str, Tensor]:
    """Every weight below the adapters, by name."""
    added: set[int] = set()
    for name in model.peft_config:
        added |= {id(weight) for weight in adapter_weights(model, name).values()}
    heads: Any = getattr(model, "scalar_heads", None)
    added |= {id(weight) for weight in (heads.parameters() if heads is not None else ())}
    return {name: p.data for name, p in model.named_parameters() if id(p) not in added}


def saved_tensors(model: Any, adapter: str = "default") -> dict[str, Tensor]:
    """What a file of weights holds of a model or of one adapter in memory, by the file's keys.

    Args:
        model: a whole model, or one with adapters.
        adapter: the name of one; with a scalar head if it has one beside the model.
    """
    if not isinstance(model, PeftModel):
        return dict(model.state_dict())
    found = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    heads: Any = getattr(model, "scalar_heads", None)
    if heads is not None and adapter in heads:
        found[SCORE] = heads[adapter].weight.data
    return dict(found)


def start_of(model: Any, adapters: Iterable[str], *, with_base: bool = True) -> Start:
    """The fingerprints of a model at the start of training.

    Args:
        model: a whole model, or one with adapters.
        adapters: the names of those that are trained.
        with_base: whether what lies below them counts, which will be whole at the end too.
    """
    if not isinstance(model, PeftModel):
        return Start(trained={WHOLE: fingerprints(saved_tensors(model))})
    trained = {name: digests(saved_tensors(model, name)) for name in adapters}
    return Start(fingerprints(base_weights(model)) if with_base else {}, trained)


def changed_base(start: Start, model: Any) -> str | None:
    """In words, which weights below an adapter are not those that were loaded; None if all are."""
    if not isinstance(model, PeftModel):
        return None
    now = fingerprints(base_weights(model))
    changed = [name for name in start.base if start.base[name] != now.get(name)]
    if not changed:
        return None
    return (
        f"{len(changed):,} weights of the base are not those that were loaded, such as {changed[0]}; "
        "an adapter leaves its base as it is"
    )


def unmoved(start: Start, now: Mapping[str, Mapping[str, str]], model: Any) -> str | None:
    """In words, what is to the bit what training started from; None if all has moved.

    Args:
        start: of training.
        now: of each adapter the digests.
        model: of whose whole weights the fingerprints are taken.
    """
    for name, before in start.trained.items():
        found = fingerprints(saved_tensors(model)) if name == WHOLE else now[name]
        if found == before:
            return "the model" if name == WHOLE else f"the adapter {name!r}"
    return None
