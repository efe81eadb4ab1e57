"""What keeps vLLM from sampling a stage's rollouts, told before any weight is loaded."""

from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.errors import RecipeError
from toolkit.models.chatml import matrices
from toolkit.recipe import StageRecipe


def check_vllm(recipe: StageRecipe) -> None:
    """Refuse rollouts by vLLM where it is not, or where it would not sample from the policy.

    Raises:
        RecipeError: naming the key.
    """
    if not recipe["use_vllm"]:
        return
    where = recipe.where["use_vllm"]
    if find_spec("vllm") is None:
        raise RecipeError(
            f"{where}: use_vllm: vLLM is not installed here; install toolkit[vllm] (docs/rollouts.md), "
            "or write use_transformers_continuous_batching: true on a GPU, or leave use_vllm out"
        )
    quantized = next((k for k in ("load_in_4bit", "load_in_8bit") if recipe[k]), None)
    if quantized and recipe["vllm_mode"] == "colocate":
        raise RecipeError(
            f"{where}: use_vllm in mode colocate with {quantized}: vLLM would hold the base quantized "
            "too, and could not take in what is learnt; write vllm_mode: server, whose base is whole"
        )
    if quantized and recipe["use_dora"]:
        raise RecipeError(
            f"{where}: use_vllm with {quantized} and use_dora: DoRA cannot be put into quantized "
            "weights exactly; leave one of the three out"
        )


def check_rows(recipe: StageRecipe, tokenizer: PreTrainedTokenizerBase, base: Any) -> None:
    """Refuse tokens that vLLM's own copy of the base has no row for.

    Args:
        recipe: the stage's keys.
        tokenizer: with what was added.
        base: as it was loaded.

    Raises:
        RecipeError: with both numbers.
    """
    rows = matrices(base)[0].shape[0]
    if recipe["use_vllm"] and len(tokenizer) > rows:
        raise RecipeError(
            f"{recipe.where['use_vllm']}: use_vllm: the tokenizer has {len(tokenizer):,} tokens and "
            f"the base {rows:,} rows, and vLLM adds none; take a base with a chat template and a pad "
            "token of its own, or leave use_vllm out"
        )
