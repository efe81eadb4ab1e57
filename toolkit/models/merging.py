"""An adapter inside the base's weights for as long as a generation takes.

On a CPU with a float32 base a generation is then a seventh to a quarter faster (`make bench`), and
its logits are equal to 1e-4. On a GPU the copy of the weights costs the memory that a larger batch
needs, and over a base in half precision the sum is rounded once more, which is done only where the
run computes in that precision: elsewhere the adapter stays beside the base.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from toolkit.models.rollout import Ended, fast_generation


@contextmanager
def merged(
    model: PeftModel, adapter: str = "default", dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Hold one adapter inside copies of the weights; afterwards the base's own are back, bit by bit.

    PEFT's `unmerge_adapter` subtracts instead, which leaves what rounding makes of it in the base.

    Args:
        model: with a LoRA adapter.
        adapter: its name.
        dtype: what each sum is rounded to; by default it stays as the weights are.
    """
    layers: list[Any] = [m for m in model.modules() if type(m) is Linear and adapter in m.lora_A]
    kept = [dict(layer.get_base_layer()._parameters) for layer in layers]
    try:
        for layer in layers:
            own = layer.get_base_layer()._parameters
            own |= {name: _copied(weight) for name, weight in own.items() if weight is not None}
            layer.merge(adapter_names=[adapter])
            if dtype:
                own["weight"] = _copied(own["weight"], dtype)
        yield
    finally:
        for layer, weights in zip(layers, kept, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer()._parameters.update(weights)


def _copied(weight: Tensor, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Another parameter of the same numbers, not trained."""
    return nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)


@contextmanager
def held_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Compute with copies of all weights in another precision; afterwards its own are in their places.

    What has that precision is not copied. Other parameters stand in for the model's, so that no
    optimizer and no hook of them notices.
    """
    places = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module._parameters.items()
        if weight is not None and weight.is_floating_point()
    ]
    copies = {id(w): nn.Parameter(w.detach().to(dtype), requires_grad=False) for *_, w in places}
    try:
        for module, name, weight in places:  # a weight in two places has one copy
            module._parameters[name] = copies[id(weight)]
        yield
    finally:
        for module, name, weight in places:
            module._parameters[name] = weight


def merge_while_generating(
    model: PeftModel,
    *,
    fast: bool = True,
    dtype: torch.dtype | None = None,
    ended: Ended | None = None,
) -> None:
    """Have `model.generate` use the policy merged, where that was measured to be faster.

    Args:
        model: the policy, as an adapter over its base.
        fast: go through `toolkit.models.rollout` where it holds.
        dtype: with `fast`, what the merged weights are held in; by default as they are.
        ended: told of rows as they end, by the fast loop.
    """
    base: Any = model.get_base_model()
    half = dtype if fast else None
    weights = {(weight.device.type, weight.dtype) for weight in base.parameters()}
    upstream = base.generate
    sample = fast_generation(upstream, ended) if fast else upstream
    if not weights <= {("cpu", torch.float32), ("cpu", half)}:
        base.generate = sample
        return

    @functools.wraps(upstream)
    def generate(*args: Any, **kwargs: Any) -> Any:
        if any(hasattr(weight, "to_local") for weight in base.parameters()):
            return upstream(*args, **kwargs)  # FSDP2 holds on to its own shards of the weights
        with merged(model, dtype=half), held_in(base, half) if half else nullcontext():
            return sample(*args, **kwargs)

    base.generate = generate
