"""Whether weights are numbers: a NaN or an infinity in one makes NaN of all that a model gives."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import RecipeError


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The key of the first tensor that holds a NaN or an infinity; None if there is none.

    One pass over each, without a copy; quantized weights are whole numbers, and passed over.
    """
    for key, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        # torch has no order for 8-bit floats
        readable = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        if not torch.isfinite(torch.stack(torch.aminmax(readable))).all():
            return key
    return None


def check_weights(name: str, model: Any) -> None:
    """Refuse a model that was just loaded, as `check_finite`."""
    check_finite(name, model.named_parameters())


def check_finite(name: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that were just loaded, if one of them is not finite.

    Args:
        name: the folder or Hub id that they came from.
        weights: each with its key.

    Raises:
        RecipeError: naming the weight.
    """
    if key := not_finite(weights):
        raise RecipeError(
            f"{name}: weight {key} holds NaN or infinity, so nothing it gives is a number; train it "
            "again, or take an earlier checkpoint"
        )
