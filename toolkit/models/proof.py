"""Proof of an artefact: what was saved is loaded again as a user would, and must give the same numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from toolkit.errors import TrainingError
from toolkit.models.load import adapter_config, load_adapter

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@torch.no_grad()
def log_probabilities(model: Any, probe: list[list[int]]) -> list[Tensor]:
    """Log-probability of every token of each probe sequence, float32 on the CPU.

    Args:
        model: a causal language model, with or without an adapter.
        probe: token ids, one list of at least two per sequence.

    Returns:
        One tensor of shape (T - 1,) per sequence of T tokens.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for ids in probe:
        tokens = torch.tensor([ids], device=device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        picked = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        rows.append(picked.cpu())
    model.train(was_training)
    return rows


def load_causal(directory: str, **kwargs: Any) -> Any:
    """A saved adapter over its base, or a full model; arguments of `from_pretrained`."""
    adapter = adapter_config(directory)
    if adapter is None:
        return AutoModelForCausalLM.from_pretrained(directory, **kwargs)
    return load_adapter(directory, adapter, **kwargs)


@dataclass(frozen=True)
class Check:
    """What an artefact must give again once it is loaded from disk.

    Attributes:
        name: of the numbers, in words.
        numbers: gives them, one tensor per sequence, from a model and token ids.
        load: gives the model from a folder, as a user would load it.
    """

    name: str
    numbers: Callable[[Any, list[list[int]]], list[Tensor]]
    load: Callable[..., Any]


LOG_PROBABILITIES = Check("log-probabilities", log_probabilities, load_causal)


def prove(
    directory: Path,
    probe: list[list[int]],
    expected: list[Tensor],
    *,
    device: torch.device,
    resident: PeftModel | None = None,
    check: Check = LOG_PROBABILITIES,
    **kwargs: Any,
) -> dict[str, Any]:
    """Load what was saved, by plain PEFT or transformers, and compare it with what was trained.

    Args:
        directory: the saved adapter or full model.
        probe: the token ids that `expected` was computed on.
        expected: the numbers of the model in memory.
        device: where `expected` was computed; the comparison is made there.
        resident: the model in memory, where its base cannot be loaded again.
        check: which numbers are compared, by default `log_probabilities`.
        **kwargs: what `from_pretrained` was given for the base.

    Returns:
        What was compared, and the largest difference.

    Raises:
        TrainingError: if a saved tensor is not finite or the numbers differ; the files stay.
    """
    check_finite(directory)
    with loaded_again(directory, resident, check, **kwargs) as loaded:
        if getattr(loaded, "hf_device_map", None) is None:
            loaded.to(device)
        found = check.numbers(loaded, probe)
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    tolerance = TOLERANCE[next(p.dtype for p in loaded.parameters() if p.is_floating_point())]
    if not difference <= tolerance:
        raise TrainingError(
            f"{directory}: what was saved does not give the numbers of what was trained "
            f"({check.name} differ by {difference:.2g}, allowed {tolerance:.0e}); "
            "the files are kept, but the stage is not finished"
        )
    return {
        "verified": "fresh_load" if resident is None else "resident_base",
        "sequences": len(probe),
        "tokens": sum(len(row) for row in expected),
        "largest_difference": difference,
        "tolerance": tolerance,
    }


@contextmanager
def loaded_again(
    directory: Path, resident: PeftModel | None, check: Check, **kwargs: Any
) -> Iterator[Any]:
    """What was saved, as a user would load it; with `resident`, in its place and only meanwhile."""
    if resident is None:
        yield check.load(str(directory), **kwargs)
        return
    former, was_training = resident.active_adapters[0], resident.training
    trained = [name for name, weight in resident.named_parameters() if weight.requires_grad]
    try:
        resident.load_adapter(str(directory), adapter_name="proof")
        resident.set_adapter("proof")
        yield resident
    finally:
        resident.set_adapter(former)
        if "proof" in resident.peft_config:
            resident.delete_adapter("proof")
        for name, weight in resident.named_parameters():
            weight.requires_grad_(name in trained)
        resident.train(was_training)


def check_finite(directory: Path) -> None:
    """Refuse a folder that holds a NaN or an infinity, naming the tensor."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is not a dict
                if not torch.isfinite(tensors.get_tensor(key).float()).all():
                    raise TrainingError(
                        f"{file}: tensor {key} holds NaN or infinity; the files are kept, but the "
                        "stage is not finished: lower learning_rate, or look at the last steps in "
                        "log.jsonl"
                    )
