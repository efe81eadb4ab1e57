"""A model and a tokenizer made from nothing but a recipe's keys and some text."""

from collections.abc import Iterable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from toolkit.errors import RecipeError
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import did_you_mean

END = "<|endoftext|>"
# As in the tokenizers of GPT-4 and Llama 3: a word takes the space before it, a number of up to
# three digits is one piece and takes none.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with one special token, `END`, which ends a document.

    Args:
        texts: what its merges are counted in.
        vocab_size: how many tokens it has at most; 257 are the bytes and `END`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def new_model(recipe: StageRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model with random weights, drawn from the seed that is set.

    Args:
        recipe: `model_type`, and `config_overrides` for what differs from that type's defaults.
        tokenizer: gives the size of the vocabulary and the ids of the special tokens.

    Raises:
        RecipeError: if there is no such type, or its config has no such key.
    """
    where = recipe.where.get("model_type", "model_type")
    kind, overrides = recipe["model_type"], recipe["config_overrides"] or {}
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except ValueError:
        near = did_you_mean(kind, CONFIG_MAPPING.keys())
        raise RecipeError(f"{where}: transformers knows no model_type {kind!r}{near}") from None
    where = recipe.where.get("config_overrides", "config_overrides")
    for key in overrides:
        if key not in known:
            raise RecipeError(
                f"{where}: the config of {kind} has no key {key!r}{did_you_mean(key, known)}"
            )
    given: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(kind, **(given | overrides))
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=recipe["attn_implementation"]
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error
