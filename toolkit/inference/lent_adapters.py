"""Adapters over the one base of an engine: those that write, and those that judge."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase

from toolkit.errors import RecipeError
from toolkit.inference.engine import BASE
from toolkit.models.finite import check_finite
from toolkit.models.heads import add_scalar_heads, load_scalar_adapter
from toolkit.models.load import adapter_config
from toolkit.models.same_words import check_same_words
from toolkit.models.switching import through

NOTHING = "nothing"
"""An adapter of zeros, which makes of a plain base a model that can hold others."""


def speaking(model: Any, adapter: str | None) -> AbstractContextManager[None]:
    """Inside the block, the model is its base with this adapter.

    Args:
        model: with or without adapters.
        adapter: as of `Prompt`.

    Raises:
        RecipeError: at the call, if there is no such adapter.
    """
    if adapter is None:
        return nullcontext()
    known = [name for name in getattr(model, "peft_config", {}) if name != NOTHING]
    if adapter != BASE and adapter not in known:
        raise RecipeError(
            f"there is no adapter {adapter!r}; known: {', '.join([BASE, *known])}: add it first"
        )
    return through(model, adapter)


def add_adapter(
    model: Any, tokenizer: PreTrainedTokenizerBase, name: str, directory: str
) -> PeftModel:
    """Put an adapter that writes over a base, beside what is there.

    Args:
        model: the base, or a model with adapters.
        tokenizer: the engine's.
        name: what it is called here.
        directory: its folder or Hub id.

    Raises:
        RecipeError: if it is none that writes, has other words, or does not fit the base.
    """
    config = adapter_config(directory)
    if config is None or config.get("task_type") == "SEQ_CLS":
        found = "a whole model" if config is None else "a reward or value adapter"
        raise RecipeError(f"{directory}: expected an adapter that writes, found {found}")
    check_new(model, name)
    check_same_words(directory, tokenizer)
    held = holding(model, directory, tokenizer)
    try:
        held.load_adapter(directory, name)
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"{directory} does not fit the base of this engine: {said}") from error
    own = ((key, weight) for key, weight in held.named_parameters() if name in key.split("."))
    check_finite(directory, own)
    return held


def add_judge(
    model: Any, tokenizer: PreTrainedTokenizerBase, name: str, directory: str
) -> PeftModel:
    """Put a reward adapter and its head over a base; arguments and errors as of `add_adapter`."""
    check_new(model, name)
    check_same_words(directory, tokenizer)
    held = holding(model, directory, tokenizer)
    if not hasattr(held, "scalar_heads"):
        add_scalar_heads(held)
    load_scalar_adapter(held, directory, name)
    return held


def check_new(model: Any, name: str) -> None:
    """Refuse a name that another adapter has."""
    if name in {BASE, NOTHING, *getattr(model, "peft_config", {})}:
        raise RecipeError(f"there is an adapter {name!r} already; give each a name of its own")


def holding(model: Any, directory: str, tokenizer: PreTrainedTokenizerBase) -> PeftModel:
    """The model if it holds adapters; a plain base with an adapter of zeros, and room for words."""
    if isinstance(model, PeftModel):
        return model
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    targets = (adapter_config(directory) or {}).get("target_modules")
    return PeftModel(model, LoraConfig(r=1, target_modules=targets), NOTHING).eval()
