"""An adapter inside its base for good: one whole model, and what it must give again from disk.

The base is loaded in 16 or 32 bits whatever the adapter was trained over, on the CPU, once.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from toolkit.errors import RecipeError, TrainingError
from toolkit.models.heads import SCORE
from toolkit.models.load import loading, stop_token_ids
from toolkit.models.ollama import modelfile
from toolkit.models.precision import declared_dtype
from toolkit.models.reward import is_classifier, without_report
from toolkit.models.saved_files import check_finite, misplaced

MODELFILE = "Modelfile"
OVERFLOW = (
    "; train it again with a lower learning_rate, or, if only the merged weights do, merge with "
    "--dtype float32"
)


def class_of(name: str, adapter: dict[str, Any]) -> Any:
    """The class of transformers that an adapter goes over.

    Args:
        name: the adapter's folder or Hub id.
        adapter: its adapter_config.json.

    Raises:
        RecipeError: if it is neither a language model nor a sequence classifier.
    """
    task = adapter.get("task_type")
    trained_over = str((adapter.get("auto_mapping") or {}).get("base_model_class"))
    if task == "CAUSAL_LM" or (task is None and trained_over.endswith("ForCausalLM")):
        return AutoModelForCausalLM
    if task == "SEQ_CLS":
        return AutoModelForSequenceClassification
    raise RecipeError(
        f"{name}/adapter_config.json: expected an adapter of a causal language model or a sequence "
        f"classifier, found task_type {task!r}; others cannot be merged here"
    )


def load_over(
    name: str, adapter: dict[str, Any], base: str, revision: str | None, dtype: str, words: Any
) -> PeftModel:
    """An adapter over its base, on the CPU, with every weight of both.

    Args:
        name: the adapter's folder or Hub id.
        adapter: its adapter_config.json.
        base: folder or Hub id of the base.
        revision: of the base on the Hub.
        dtype: of the base's weights; "auto" is what its checkpoint declares.
        words: the tokenizer that goes with the adapter; the base gets room for its tokens.

    Raises:
        RecipeError: if the two do not fit together, or weights are missing in one of them.
        HubError: if the Hub does not have the base or does not give it.
    """
    auto = class_of(name, adapter)
    config = PeftConfig.from_pretrained(name)
    weights = load_peft_weights(name, device="cpu")
    check_finite(name, weights.items(), OVERFLOW)
    hub = {"revision": revision or "main", "trust_remote_code": False}
    kwargs: dict[str, Any] = {}
    if auto is AutoModelForSequenceClassification:
        if SCORE not in weights:
            raise RecipeError(
                f"{name}: this adapter of a sequence classifier has no head ({SCORE}), so a merged "
                "model could give no scores; train or save it again"
            )
        kwargs["num_labels"] = weights[SCORE].shape[0]
    with loading(base, shown=f"{name} over {base}"), without_report():
        if dtype == "auto":
            dtype = declared_dtype(base, **hub)
        model, found = auto.from_pretrained(
            base, dtype=dtype, output_loading_info=True, **hub, **kwargs
        )
    missing = sorted(key for key in found["missing_keys"] if not SCORE.endswith(key))
    if missing:
        raise RecipeError(
            f"{base}: {len(missing):,} weights that its config.json asks for are not there, such as "
            f"{missing[0]}; name a whole checkpoint"
        )
    model = in_full_precision(model, base, dtype)
    if len(words) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(words), mean_resizing=False)
    return put_on(model, name, base, config, weights)


def in_full_precision(model: Any, base: str, dtype: str) -> Any:
    """The model with plain weights, where its checkpoint itself holds quantized ones.

    Raises:
        RecipeError: if transformers cannot turn them back.
    """
    if getattr(model, "hf_quantizer", None) is None:
        return model
    try:
        return model.dequantize(dtype=getattr(torch, dtype)).to(getattr(torch, dtype))
    except (NotImplementedError, ValueError, TypeError) as error:
        raise RecipeError(
            f"{base} holds quantized weights, which transformers cannot turn back ({error}); an "
            "adapter is merged into weights of 16 or 32 bits"
        ) from error


def put_on(
    model: Any, name: str, base: str, config: PeftConfig, weights: dict[str, Tensor]
) -> PeftModel:
    """Put an adapter on a base, and see that nothing of it was left out.

    Raises:
        RecipeError: if it does not fit, or its file lacks weights or holds others.
    """
    if config.is_prompt_learning:
        raise RecipeError(
            f"{name}: {config.peft_type} works beside the weights and cannot be merged into them"
        )
    try:
        with said_here_instead():
            held = PeftModel.from_pretrained(model, name, config=config).eval()
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise RecipeError(f"{name} does not fit the base {base}: {said}") from error
    for keys, what in zip(misplaced(held, weights), ("lacks", "holds"), strict=True):
        if keys:
            raise RecipeError(
                f"{name}: the file of weights {what} {keys[0]}, unlike what its "
                f"adapter_config.json says ({len(keys):,} such weights); merging would lose what "
                "was trained"
            )
    return held


@contextmanager
def said_here_instead() -> Iterator[None]:
    """Keep PEFT's warnings from the user: what they warn of is refused here, or dealt with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        warnings.filterwarnings("ignore", "Model .*tie_word_embeddings")
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        yield


def merge_in(model: PeftModel, words: PreTrainedTokenizerBase) -> Any:
    """The base with the adapter inside its weights, and settings that say what it is.

    Args:
        model: is used up.
        words: whose padding a classifier must know, to score several sequences at once.
    """
    untie_what_differs(model)
    with said_here_instead():
        merged: Any = model.merge_and_unload()  # pyright: ignore[reportCallIssue]
    config = merged.config.get_text_config()
    if config.pad_token_id is None and words.pad_token_id is not None:
        config.pad_token_id = words.pad_token_id
    check_finite("the merged model", merged.state_dict().items(), OVERFLOW)
    return merged


def untie_what_differs(model: PeftModel) -> None:
    """Give the head its own copy of a tied matrix, where the adapter changes only one use of it.

    LoRA on the embedding leaves the head as it was; merged into the one matrix, it would change both.
    """
    base: Any = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None:
        return
    if any(isinstance(module, TrainableTokensWrapper) for module in (embedding, head)):
        return  # PEFT trains the same rows for both, or untied matrices
    one, other = (getattr(m, "get_base_layer", lambda m=m: m)() for m in (embedding, head))
    if one.weight is other.weight and (one is not embedding or other is not head):
        other.weight = nn.Parameter(other.weight.detach().clone(), requires_grad=False)


def save_merged(
    merged: Any, words: PreTrainedTokenizerBase, adapter: str, folder: Path, max_shard_size: str
) -> None:
    """Write the model in shards, with its tokenizer, chat template and generation defaults.

    Args:
        merged: what `merge_in` returned.
        words: its tokenizer.
        adapter: the adapter's folder, whose generation defaults win over the base's.
        folder: where to.
        max_shard_size: as transformers has it, such as "5GB".
    """
    if merged.can_generate() and (Path(adapter) / "generation_config.json").is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter)
    merged.save_pretrained(folder, max_shard_size=max_shard_size)
    words.save_pretrained(str(folder))
    if merged.can_generate() and words.chat_template is not None:
        stops = [str(words.decode([token])) for token in stop_token_ids(merged, words)]
        if (text := modelfile(words, stops)) is not None:
            (folder / MODELFILE).write_text(text, encoding="utf-8")


def load_merged(folder: Path) -> Any:
    """A merged model as a user would load it, by plain transformers and its own config.json.

    Raises:
        TrainingError: if a weight is missing in it.
    """
    auto: Any = (
        AutoModelForSequenceClassification if is_classifier(folder) else AutoModelForCausalLM
    )
    model, found = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if found[kind]:
            raise TrainingError(
                f"the merged model's files do not fit its config.json ({kind}: {sorted(found[kind])[0]})"
            )
    return model.eval()
