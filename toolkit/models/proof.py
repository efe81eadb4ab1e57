"""Proof of an artefact: what was saved is loaded again as a user would, and must give the same numbers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from toolkit.errors import TrainingError
from toolkit.models import kept
from toolkit.models.digests import digests, saved_tensors
from toolkit.models.heads import add_scalar_heads, load_scalar_adapter
from toolkit.models.load import adapter_config, load_adapter
from toolkit.models.saved_files import KEPT, check_file, check_files, check_loaded
from toolkit.models.value import VALUE

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
ELSEWHERE = 4  # times the tolerance, where another kind of device rounds
AGAIN = "proof"  # what an adapter from disk is called beside what is in memory


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


def load_causal(directory: str, *, lent: bool = False, **kwargs: Any) -> Any:
    """A saved adapter over its base, or a full model; arguments of `load_adapter`."""
    adapter = adapter_config(directory)
    if adapter is None:
        return AutoModelForCausalLM.from_pretrained(directory, **kwargs)
    return load_adapter(directory, adapter, lent=lent, **kwargs)


@dataclass(frozen=True)
class Check:
    """What an artefact must give again once it is loaded from disk.

    Attributes:
        name: of the numbers, in words.
        numbers: gives them, one tensor per sequence, from a model and token ids.
        load: gives the model from a folder, as a user would load it.
        holder: of what `load` gives, the model of PEFT or transformers.
    """

    name: str
    numbers: Callable[[Any, list[list[int]]], list[Tensor]]
    load: Callable[..., Any]
    holder: Callable[[Any], Any] = lambda model: model


LOG_PROBABILITIES = Check("log-probabilities", log_probabilities, load_causal)


@torch.no_grad()
def probe_values(model: Any, probe: list[list[int]], adapter: str = VALUE) -> list[Tensor]:
    """What a critic says of every position, float32 on the CPU, of shape (T,) per sequence.

    Args:
        model: with a scalar adapter and its head.
        probe: token ids.
        adapter: the critic's name.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    rows = [
        model(input_ids=torch.tensor([ids], device=device), scalar_head=adapter)[0].cpu()
        for ids in probe
    ]
    model.train(was_training)
    return rows


@dataclass
class Expected:
    """What was in memory when an artefact was saved, and must be there again.

    Attributes:
        probe: token ids, one list per sequence; empty where the model is sharded and was not asked.
        numbers: what the check gives of them.
        tensors: a digest of each saved tensor, by its key; empty where that is not known.
        values: what the critic gives of the probe, where one was saved in the folder `value`.
        value_tensors: the same of the critic's tensors.
    """

    probe: list[list[int]]
    numbers: list[Tensor]
    tensors: dict[str, str] = field(default_factory=dict)
    values: list[Tensor] | None = None
    value_tensors: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, to the last bit of each number."""
        rows = None if self.values is None else [row.tolist() for row in self.values]
        numbers = [row.tolist() for row in self.numbers]
        return vars(self) | {"numbers": numbers, "values": rows}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Expected":
        """What `as_dict` gave, read from disk.

        Raises:
            TrainingError: if it is something else.
        """
        try:
            values = found["values"]
            return cls(
                [[int(token) for token in ids] for ids in found["probe"]],
                [torch.tensor(row) for row in found["numbers"]],
                dict(found["tensors"]),
                None if values is None else [torch.tensor(row) for row in values],
                dict(found["value_tensors"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"proof.json: expected what a stage wrote, found no {error}; the proof cannot be "
                "repeated"
            ) from error


def expect(model: Any, probe: list[list[int]], check: Check) -> Expected:
    """What a model in memory gives of a probe, its critic included."""
    tensors = digests(saved_tensors(check.holder(model)))
    found = Expected(probe, check.numbers(model, probe), tensors)
    if has_critic(model):
        found.values = probe_values(model, probe)
        found.value_tensors = digests(saved_tensors(model, VALUE))
    return found


def has_critic(model: Any) -> bool:
    """Whether a model in memory is a policy with PPO's value adapter."""
    return isinstance(model, PeftModel) and VALUE in getattr(model, "scalar_heads", ())


def prove(
    directory: Path,
    expected: Expected,
    *,
    device: torch.device,
    resident: PeftModel | None = None,
    check: Check = LOG_PROBABILITIES,
    elsewhere: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """Load what was saved, by plain PEFT or transformers, and compare it with what was trained.

    Args:
        directory: the saved adapter or full model.
        expected: what it must give.
        device: where that was computed; the comparison is made there.
        resident: the model in memory, where its base cannot be loaded again.
        check: which numbers are compared, by default `log_probabilities`.
        elsewhere: whether the numbers are those of another kind of device, which rounds otherwise.
        **kwargs: what `from_pretrained` was given for the base.

    Returns:
        What was compared, and the largest difference.

    Raises:
        TrainingError: if a saved tensor is not finite, missing or another, or the numbers differ; the
            files stay.
    """
    check_files(directory)
    check_file(directory, expected.tensors)
    with loaded_again(directory, resident, check, **kwargs) as (loaded, adapter):
        if getattr(loaded, "hf_device_map", None) is None:
            loaded.to(device)
        check_loaded(directory, saved_tensors(check.holder(loaded), adapter), expected.tensors)
        numbers = check.numbers(loaded, expected.probe)
        allowed = tolerance(loaded, elsewhere=elsewhere)
        difference = compare(directory, check.name, numbers, expected.numbers, allowed)
        fresh = resident is None and not kept.is_lent()
        how = "fresh_load" if fresh else "resident_base"
        found = outcome(how, expected, difference, allowed) | {"device": device.type}
        if expected.values is not None:
            difference = prove_values(directory / VALUE, loaded, expected, allowed)
            found["largest_difference_of_values"] = difference
    return found


def outcome(how: str, expected: Expected, difference: float, allowed: float) -> dict[str, Any]:
    """What a proof found, for `stage.json`.

    Args:
        how: where the artefact from disk went, as `stage.json` calls it.
        expected: what was compared.
        difference: the largest between numbers.
        allowed: the largest that is none.
    """
    return {
        "verified": how,
        "sequences": len(expected.probe),
        "tokens": sum(len(row) for row in expected.numbers),
        "tensors": len(expected.tensors) + len(expected.value_tensors),
        "largest_difference": difference,
        "tolerance": allowed,
    }


def prove_values(directory: Path, loaded: Any, expected: Expected, allowed: float) -> float:
    """Put the critic on the same base, by PEFT, and compare its values; as `prove`.

    Args:
        directory: the critic's folder.
        loaded: the policy, which was just loaded.
        expected: what the critic must give.
        allowed: how far its values may differ.

    Returns:
        The largest difference.
    """
    assert expected.values is not None
    if adapter_config(str(directory)) is None:
        raise TrainingError(f"{directory}: the value adapter was trained and is missing{KEPT}")
    check_files(directory)
    check_file(directory, expected.value_tensors)
    again = f"{AGAIN}_{VALUE}"
    if not hasattr(loaded, "scalar_heads"):
        add_scalar_heads(loaded)
    try:
        load_scalar_adapter(loaded, str(directory), again)
        check_loaded(directory, saved_tensors(loaded, again), expected.value_tensors)
        values = probe_values(loaded, expected.probe, again)
        return compare(directory, "values", values, expected.values, allowed)
    finally:
        if again in loaded.peft_config:
            loaded.delete_adapter(again)
        if again in loaded.scalar_heads:
            loaded.scalar_heads.pop(again)


def compare(
    directory: Path, name: str, found: list[Tensor], expected: list[Tensor], allowed: float
) -> float:
    """The largest difference between numbers and what they must be.

    Args:
        directory: what was loaded.
        name: of the numbers, in words.
        found: one tensor per sequence.
        expected: the same.
        allowed: the largest difference that is none.

    Raises:
        TrainingError: if they differ by more.
    """
    if [row.shape for row in found] != [row.shape for row in expected]:
        raise TrainingError(f"{directory}: {name} of other sequences were noted{KEPT}")
    gaps = torch.cat([(a - b).abs() for a, b in zip(found, expected, strict=True)])
    # to torch a NaN is the largest of all; Python's max may pass it over
    difference = float(gaps.max()) if len(gaps) else 0.0
    if not difference <= allowed:
        raise TrainingError(
            f"{directory}: what was saved does not give the numbers of what was trained "
            f"({name} differ by {difference:.2g}, allowed {allowed:.0e}){KEPT}"
        )
    return difference


def tolerance(model: Any, *, elsewhere: bool) -> float:
    """How far numbers may differ, by the precision of the weights and where they were computed."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return TOLERANCE[dtype] * (ELSEWHERE if elsewhere else 1)


@contextmanager
def loaded_again(
    directory: Path, resident: PeftModel | None, check: Check, **kwargs: Any
) -> Iterator[tuple[Any, str]]:
    """What was saved, and its adapter's name; with `resident`, in its place and only meanwhile."""
    if resident is None:
        lent: dict[str, Any] = {"lent": True} if kept.is_kept() else {}
        yield check.load(str(directory), **lent, **kwargs), "default"
        return
    former, was_training = resident.active_adapters[0], resident.training
    trained = [name for name, weight in resident.named_parameters() if weight.requires_grad]
    try:
        resident.load_adapter(str(directory), adapter_name=AGAIN)
        resident.set_adapter(AGAIN)
        yield resident, AGAIN
    finally:
        resident.set_adapter(former)
        if AGAIN in resident.peft_config:
            resident.delete_adapter(AGAIN)
        for name, weight in resident.named_parameters():
            weight.requires_grad_(name in trained)
        resident.train(was_training)
