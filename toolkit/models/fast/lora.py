"""A LoRA layer's update, added where the frozen layer's result already lies."""

import functools
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from toolkit.models.fast.replaced import replace


def add_in_place(base: nn.Module) -> None:
    """Have every LoRA layer of a model add its update where the frozen layer's result lies."""
    for layer in base.modules():
        if type(layer) is Linear:
            replace(layer, lora_forward(layer))


def lora_forward(layer: Linear) -> Any:
    """A forward pass of PEFT's layer, in which one product scales and adds the update.

    PEFT 0.21 (peft/tuners/lora/layer.py) multiplies, scales and adds one after the other: three passes
    over as many numbers as the layer gives, and one more for the gradient.

    Args:
        layer: its own forward pass is taken for what this one does not know: several adapters or
            none, merged ones, variants such as DoRA, other layers than linear ones below.
    """
    upstream = layer.forward

    @functools.wraps(upstream)
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own: Any = layer
        below, name = own.base_layer, adapter_of(layer)
        if name is None or args or kwargs or type(below) is not nn.Linear:
            return upstream(x, *args, **kwargs)
        up = own.lora_B[name]
        casts = torch.is_autocast_enabled(x.device.type)
        if up.bias is not None or not (casts or below.weight.dtype == up.weight.dtype):
            return upstream(x, *args, **kwargs)
        # of three dimensions the result would be a view, whose gradient is copied if it is added to
        flat = x.reshape(-1, x.shape[-1])
        said = below(flat)
        rank = own.lora_A[name](own.lora_dropout[name](flat))
        weight = up.weight.to(said.dtype)  # autocast leaves out what is done in place
        said.addmm_(rank, weight.t(), alpha=own.scaling[name])
        return said.view(*x.shape[:-1], -1)

    return forward


def adapter_of(layer: Linear) -> str | None:
    """The only adapter that a layer computes, if it is plain LoRA beside the weight."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    return None if active[0] in layer.lora_variant else active[0]
