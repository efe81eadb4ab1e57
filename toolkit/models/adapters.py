"""Adapters over one frozen base: attach a fresh one, continue a copy of one, save it.

What depends on the inside of PEFT or TRL is kept here and says the version it was read in.
"""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel
from trl import get_peft_config

from toolkit.errors import RecipeError
from toolkit.models.chatml import TokenizerChange
from toolkit.models.load import adapter_config, keep_unpacked, model_config
from toolkit.models.token_rows import further_rows, matrix_names, rows_to_train
from toolkit.recipe import StageRecipe

# TRL 1.16 reads `lm_head.bias` (trl/trainer/utils.py, add_fused_lm_head), which PEFT 0.21's wrapper
# around a head with trained tokens does not pass on.
TrainableTokensWrapper.bias = property(  # pyright: ignore[reportAttributeAccessIssue]
    lambda self: getattr(self.token_adapter.base_layer, "bias", None)
)

# recipe key -> LoraConfig field, for the keys that an adapter remembers
LORA_FIELDS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
ROWS = "trainable_tokens_delta"  # how PEFT calls the trained rows of a matrix


def attach(model: PreTrainedModel, recipe: StageRecipe, change: TokenizerChange) -> PeftModel:
    """Put a fresh LoRA adapter on a base; the rows of added tokens are trained with it.

    Args:
        model: the frozen base.
        recipe: gives the LoRA keys.
        change: what was added to the tokenizer.

    Raises:
        RecipeError: if a LoRA key names nothing of this model, or PEFT refuses it.
    """
    return attach_as(lora_config(recipe), model, recipe, change)


def lora_config(recipe: StageRecipe) -> LoraConfig:
    """PEFT's configuration of a recipe's LoRA keys."""
    config = get_peft_config(model_config(recipe))
    assert isinstance(config, LoraConfig)
    if isinstance(config.target_modules, str) and re.fullmatch(r"[\w.]+", config.target_modules):
        # TRL makes a list of one name a pattern, which no module inside another matches whole
        config.target_modules = [config.target_modules]
    return config


def attach_as(
    config: LoraConfig, model: PreTrainedModel, recipe: StageRecipe, change: TokenizerChange
) -> PeftModel:
    """Put a fresh adapter on a base as the configuration says; else as `attach`."""
    check_names(model, config)
    config.trainable_token_indices = rows_to_train(model, change.trained, config)
    peft_model = adapted(model, config)
    config.revision = (
        None if Path(str(recipe["model_name_or_path"])).is_dir() else (recipe["model_revision"])
    )
    return ready(peft_model)


def adapted(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The base with an adapter as the configuration says.

    Raises:
        RecipeError: if PEFT refuses it.
    """
    try:
        return get_peft_model(model, config)  # pyright: ignore[reportReturnType]
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"LoRA cannot be put on this model: {said}") from error


def check_names(model: PreTrainedModel, config: LoraConfig) -> None:
    """Refuse a LoRA key that names what the model does not have: PEFT would pass over it.

    Raises:
        RecipeError: naming what was not found, and what there is.
    """
    modules = [name for name, _ in model.named_modules() if name]
    weights = [name for name, _ in model.named_parameters()]
    targets = config.target_modules
    for key, wanted, there in (
        ("lora_target_modules", targets if isinstance(targets, set | list) else (), modules),
        ("lora_modules_to_save", config.modules_to_save, modules),
        ("lora_target_parameters", config.target_parameters, weights),
    ):
        for name in wanted or ():
            if not any(other == name or other.endswith(f".{name}") for other in there):
                ends = {
                    ".".join(other.split(".")[-2 if there is weights else -1 :]) for other in there
                }
                listed = ", ".join(sorted(end for end in ends if not end.isdigit()))
                raise RecipeError(f"{key}: this model has no {name!r}; it has {listed}")
    head = model.get_output_embeddings()
    found = {name for name, module in model.named_modules() if module is head}
    if targets and found & set(as_list(targets)):
        raise RecipeError(
            f"lora_target_modules: LoRA on {found.pop()} would never be trained, because the loss "
            "is computed from the matrix itself; leave it out, or train the matrices of the "
            "vocabulary whole with lora_modules_to_save"
        )


def as_list(names: str | Iterable[str] | None) -> list[str]:
    """Names in order, given as one, several or none."""
    return [names] if isinstance(names, str) else sorted(names or ())


def ready(peft_model: Any) -> PeftModel:
    """Train in float32 over whatever the base holds, and save added rows, never the whole matrix.

    PEFT 0.21 writes the full embedding into the adapter as soon as the vocabulary has grown
    (save_and_load.py, `save_embedding_layers="auto"`); the trained rows are in it either way.
    """
    as_float32(keep_unpacked(peft_model))
    peft_model.save_pretrained = functools.partial(
        peft_model.save_pretrained, save_embedding_layers=False
    )
    return peft_model


def as_float32(model: Any) -> None:
    """Hold an adapter in float32, as PEFT loads it; its values stay, and so does a full model."""
    for parameter in model.parameters() if isinstance(model, PeftModel) else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_continued(recipe: StageRecipe, parent: str) -> dict[str, Any]:
    """The adapter that a recipe continues must exist, and the recipe must not contradict it.

    Args:
        recipe: whose LoRA keys, where written, must be those of the adapter.
        parent: the adapter's folder or Hub id.

    Returns:
        Its adapter_config.json.

    Raises:
        RecipeError: if it is no LoRA adapter, or a key differs, or it belongs to another base.
    """
    config = adapter_config(parent)
    if config is None:
        raise RecipeError(
            f"start_from: {parent} holds no adapter_config.json; name the folder of an adapter, "
            "or give a full model as model_name_or_path"
        )
    if config.get("peft_type", "LORA") != "LORA":
        raise RecipeError(
            f"start_from: expected a LoRA adapter, found {config['peft_type']} in {parent}; name "
            "another, or leave start_from out"
        )
    if config.get("task_type") == TaskType.SEQ_CLS and recipe.stage != "reward":
        raise RecipeError(
            f"start_from: {parent} is a reward or value adapter, which judges and does not speak; "
            "name the adapter of a policy"
        )
    for key, field in LORA_FIELDS.items():
        if not recipe.is_written(key):
            continue
        ours, theirs = recipe[key], config.get(field)
        several = isinstance(ours, list) or isinstance(theirs, list)
        same = as_list(ours) == as_list(theirs) if several else ours == theirs
        if not same and not (key == "lora_target_modules" and ours == "all-linear"):
            raise RecipeError(
                f"{recipe.where[key]}: {key} is {ours!r}, but the adapter that start_from "
                f"continues has {theirs!r}; leave the key out, it comes from the adapter"
            )
    base = recipe["model_name_or_path"]
    if base and not same_place(str(base), str(config["base_model_name_or_path"])):
        raise RecipeError(
            f"start_from: the adapter {parent} was trained over "
            f"{config['base_model_name_or_path']}, but model_name_or_path is {base}; an adapter goes on its own base only"
        )
    return config


def same_place(one: str, other: str) -> bool:
    """Whether two names are the same Hub id or the same folder."""
    return one == other or (Path(one).is_dir() and Path(one).resolve() == Path(other).resolve())


def check_given(recipe: StageRecipe, model: Any) -> None:
    """A model in memory must be the one that the recipe names, if it names one.

    Raises:
        RecipeError: if the two come from different places.
    """
    named, came_from = recipe.written.get("model_name_or_path"), model.name_or_path
    if named and came_from and not same_place(str(named), str(came_from)):
        raise RecipeError(
            f"{recipe.where['model_name_or_path']}: model_name_or_path is {named}, but the model "
            f"that was given comes from {came_from}; leave one of the two out"
        )


def continue_from(model: PreTrainedModel, parent: str, change: TokenizerChange) -> PeftModel:
    """Load an adapter onto the base as a copy that will be trained; the original stays as it is.

    Args:
        model: the frozen base, with room for the added tokens.
        parent: the adapter's folder or Hub id.
        change: what was added to the adapter's own tokenizer; those rows are trained too, and start
            where the base has them.

    Raises:
        RecipeError: if the adapter leaves no way to train those rows.
    """
    if not change.trained:
        return ready(PeftModel.from_pretrained(model, parent, is_trainable=True))
    config = PeftConfig.from_pretrained(parent)
    assert isinstance(config, LoraConfig)
    return continue_as(config, model, parent, change)


def continue_as(
    config: LoraConfig,
    model: PreTrainedModel,
    parent: str,
    change: TokenizerChange,
    new: str | None = None,
) -> PeftModel:
    """Load an adapter's weights into one that is as the configuration says; else as `continue_from`.

    Args:
        config: of the copy; weights of the adapter that have no place in it are left out.
        model: as of `continue_from`, like the others.
        parent: the adapter.
        change: what was added to its tokenizer.
        new: a weight that the adapter does not have, and that starts as the model has it.
    """
    base, config.inference_mode = config.base_model_name_or_path, False
    whole = set(matrix_names(model)) & set(config.modules_to_save or ())
    try:
        if change.trained:
            config.trainable_token_indices = further_rows(model, change.trained, config)
        config.base_model_name_or_path = None  # PEFT writes where this copy of it came from
        continued = ready(adapted(model, config))
    except RecipeError as error:
        raise RecipeError(
            f"start_from: {parent} cannot learn the tokens that this stage adds ({error}); leave "
            "start_from out, or train the earlier stage on chats too"
        ) from error
    config.base_model_name_or_path = base
    weights = load_peft_weights(parent, device="cpu")
    starts = get_peft_model_state_dict(continued, save_embedding_layers=False)
    for key, start in ((key, value.cpu()) for key, value in starts.items()):
        if new is not None and key.endswith(new):
            weights[key] = start
        elif key.endswith(ROWS):
            held = weights.get(key, start[:0])
            weights[key] = torch.cat([held, start[len(held) :]])
        elif key.removesuffix(".weight").rpartition(".")[2] in whole:
            held = weights[key]
            known = [row for row in range(len(held)) if row not in change.added]
            weights[key] = start.to(held.dtype).index_copy(0, torch.tensor(known), held[known])
    set_peft_model_state_dict(continued, weights)
    return continued


def save_beside(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write, beside an adapter's or a model's weights, its tokenizer and generation defaults."""
    tokenizer.save_pretrained(str(directory))
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.can_generate():
        base.generation_config.save_pretrained(str(directory))


def trained_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters())
