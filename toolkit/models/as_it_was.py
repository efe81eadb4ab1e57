"""How a model is put together, noted before something is done to it, and brought back afterwards.

Adapters, wrappers, hooks, methods that were replaced, rows of added tokens, gradient flags, casts: all
of it is undone by putting every module's own attributes back. The numbers are never copied, so the
note takes no memory; whoever trains the weights themselves keeps what was trained.
"""

import copy
from collections.abc import Iterator, MutableMapping, MutableSet
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

SETTINGS = (PreTrainedConfig, GenerationConfig)


class AsItWas:
    """A model as it is now, to which `restore` brings it back.

    Args:
        model: without an adapter.
    """

    def __init__(self, model: nn.Module):
        self.modules = [(module, type(module), _held(module)) for module in model.modules()]
        self.settings = [(each, _plain(each)) for each in _settings_of(model)]
        self.tensors = [
            (tensor, tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in tensors(model)
        ]

    def restore(self) -> None:
        """Undo what was done since, but for the numbers in the weights and the device."""
        for module, kind, attributes in self.modules:
            module.__class__ = kind  # of a parametrized module it is another
            held = vars(module)
            held.clear()
            for name, (value, inside) in attributes.items():
                held[name] = value
                if isinstance(value, MutableMapping):
                    value.clear()
                    value.update(inside)
                elif isinstance(value, MutableSet):
                    value.clear()
                    value |= inside
                elif isinstance(value, list):
                    value[:] = inside
        for each, values in self.settings:
            vars(each).clear()
            vars(each).update(_copied(values))
        for tensor, shape, dtype, requires_grad in self.tensors:
            # a cast up and back again changes no bit, and rows are added behind the others
            if tensor.shape != shape:
                tensor.data = tensor.data[: shape[0]].clone()
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
            tensor.requires_grad_(requires_grad)
            tensor.grad = None
            if tensor._backward_hooks:
                tensor._backward_hooks.clear()


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer, each once."""
    yield from model.parameters()
    yield from model.buffers()


def _held(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """A module's own attributes, each with a copy of what is inside, where it may change in place."""
    kinds = (MutableMapping, MutableSet, list)
    return {
        name: (value, copy.copy(value) if isinstance(value, kinds) else None)
        for name, value in vars(module).items()
    }


def _settings_of(model: nn.Module) -> list[Any]:
    """Every configuration in a model, those inside others too."""
    found: dict[int, Any] = {}
    left = [value for m in model.modules() for value in vars(m).values()]
    while left:
        value = left.pop()
        if isinstance(value, SETTINGS) and id(value) not in found:
            found[id(value)] = value
            left += vars(value).values()
    return list(found.values())


def _plain(settings: Any) -> dict[str, Any]:
    return _copied(vars(settings))


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """The same, in which only a configuration is the very object: it has its own note."""
    return {
        name: value if isinstance(value, (*SETTINGS, torch.dtype)) else copy.deepcopy(value)
        for name, value in values.items()
    }
