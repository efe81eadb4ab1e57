"""Several adapters over one base, and which of them the next forward pass goes through.

PEFT's own `set_adapter` also decides what is trained: it freezes every adapter but the active one.
Where two adapters are trained in one step, only the way of the forward pass may change. The names
used here are private ones of PEFT 0.21 and transformers 5.23.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn


@contextmanager
def through(model: nn.Module, adapter: str) -> Iterator[None]:
    """Run forward passes inside the block through one adapter; what is trained stays as it is.

    Args:
        model: with one or more adapters.
        adapter: the name of one; a layer where it has no weights works as the base's.
    """
    layers = adapter_layers(model)
    has = [adapter in layer._get_available_adapters() for layer in layers]
    with active(layers, [[adapter] if there else [] for there in has]):
        yield


def adapter_layers(model: nn.Module) -> list[Any]:
    """Every layer that holds weights of adapters."""
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


@contextmanager
def active(layers: Sequence[Any], adapters: Sequence[Any]) -> Iterator[None]:
    """Inside the block, each layer uses the adapters given for it."""
    former = [layer._active_adapter for layer in layers]
    try:
        for layer, names in zip(layers, adapters, strict=True):
            layer._active_adapter = names
        yield
    finally:
        for layer, names in zip(layers, former, strict=True):
            layer._active_adapter = names


def checkpoint_through(model: PeftModel) -> None:
    """Have gradient checkpointing run a layer again through the adapter of its first run.

    The second run comes in the backward pass, when `through` has long ended.
    """
    base: Any = model.get_base_model()
    upstream = functools.partial(type(base)._set_gradient_checkpointing, base)

    def set_checkpointing(*args: Any, **kwargs: Any) -> None:
        if function := kwargs.get("gradient_checkpointing_func"):
            kwargs["gradient_checkpointing_func"] = _remembering(function)
        upstream(*args, **kwargs)

    base._set_gradient_checkpointing = set_checkpointing


def _remembering(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The same `checkpoint`, of which the second run goes through the adapters of the first.

    What transformers gives it to run is a partial of a layer's forward and the layer.
    """

    def checkpoint_layer(run: Any, *inputs: Any) -> Any:
        layers = adapter_layers(run.args[0])
        first = [layer._active_adapter for layer in layers]

        def run_as_first(*inputs: Any) -> Any:
            with active(layers, first):
                return run(*inputs)

        return checkpoint(run_as_first, *inputs)

    return checkpoint_layer


def adapter_weights(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The weights of one adapter, by the place they have in every adapter of its kind.

    Told by where PEFT keeps them, not by their names: "value" is also what some models call a layer.

    Args:
        model: with one or more adapters.
        adapter: the name of one.
    """
    found: dict[str, nn.Parameter] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper):
            continue
        for kind in layer.adapter_layer_names:
            held = getattr(layer, kind, None)
            mine: Any = held[adapter] if held is not None and adapter in held else None
            if isinstance(mine, nn.Parameter):
                found[f"{name}.{kind}"] = mine
            elif mine is not None:
                found |= {f"{name}.{kind}.{rest}": p for rest, p in mine.named_parameters()}
    return found


def train_only(model: nn.Module, weights: Iterable[nn.Parameter]) -> None:
    """Mark these weights as trained, and no others."""
    trained = {id(weight) for weight in weights}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
