"""The value adapter: PPO's critic, beside the policy over the same base."""

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import nn

from toolkit.models.copies import copy_adapter
from toolkit.models.heads import SCORE, add_head, load_scalar_adapter
from toolkit.models.switching import adapter_weights
from toolkit.models.token_rows import matrix_names

VALUE = "value"


def add_value_adapter(model: PeftModel, start: str | None = None) -> None:
    """Add the adapter `value` and its head, in float32.

    Args:
        model: with the adapter `default` and `add_scalar_heads`.
        start: a reward stage's adapter to start from, its head included. By default the critic
            starts as a copy of the policy whose head gives 0 everywhere.

    Raises:
        RecipeError: if `start` is no adapter with a head, or does not fit the base.
    """
    if start is not None:
        load_scalar_adapter(model, start, VALUE, is_trainable=True)
    else:
        config = copy.deepcopy(model.peft_config["default"])
        without_head(config, model)
        model.add_adapter(VALUE, config)
        copy_adapter(model, "default", VALUE)
        add_head(model, VALUE)
    for weight in value_weights(model):
        weight.data = weight.data.float()


def value_weights(model: PeftModel) -> list[nn.Parameter]:
    """What is trained of the critic: the adapter and its head, as the model holds them now."""
    heads: nn.ModuleDict = model.scalar_heads  # pyright: ignore[reportAssignmentType]
    return [*adapter_weights(model, VALUE).values(), *heads[VALUE].parameters()]


def without_head(config: Any, model: PeftModel) -> None:
    """Take the output matrix out of an adapter that never uses it: DDP waits for its gradient."""
    embedding, *other = matrix_names(model.get_base_model())  # pyright: ignore[reportArgumentType]
    head = set(other) - {embedding}
    rows, whole = config.trainable_token_indices, config.modules_to_save
    if isinstance(rows, dict):
        kept = {name: ids for name, ids in rows.items() if name.rpartition(".")[2] not in head}
        config.trainable_token_indices = kept or None
    if whole:
        config.modules_to_save = [n for n in whole if n.rpartition(".")[2] not in head] or None


def load_value(model: PeftModel, directory: Path) -> None:
    """Set the value adapter and its head to what a checkpoint holds."""
    weights = load_peft_weights(str(directory), device="cpu")
    head = weights.pop(SCORE)
    set_peft_model_state_dict(model, weights, adapter_name=VALUE)
    heads: nn.ModuleDict = model.scalar_heads  # pyright: ignore[reportAssignmentType]
    heads[VALUE].load_state_dict({"weight": head})
