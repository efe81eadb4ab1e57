"""Loads a base, a tokenizer, or a finished run, from a folder or from the Hub."""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from peft import AutoPeftModelForCausalLM
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file
from trl import ModelConfig, get_quantization_config

from toolkit.errors import RecipeError, ToolkitError
from toolkit.models import kept
from toolkit.models.finite import check_weights
from toolkit.models.load_failures import broken_files, hub_error, out_of_reach
from toolkit.models.precision import accelerator, declared_dtype, device_dtype
from toolkit.recipe import StageRecipe

CHECK_TIMEOUT_S = 10
WEIGHTS = ("config.json", "adapter_config.json")


def check_model_path(name: str) -> None:
    """Tell a folder that is not there from a Hub id that is.

    Args:
        name: what a recipe gave as `model_name_or_path` or `start_from`.

    Raises:
        RecipeError: if it is, or looks like, a local folder that holds no model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in WEIGHTS):
            raise RecipeError(
                f"{name}: expected a model folder with config.json or adapter_config.json, found "
                "neither; name the folder that holds the weights"
            )
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise RecipeError(f"{name}: no such folder ({path.absolute()}); check the path")


@contextmanager
def loading(name: str, *, shown: str | None = None) -> Iterator[None]:
    """Turn a failure to load `name` inside the block into one line that names it.

    Args:
        name: a folder or a Hub id.
        shown: what to name where files are broken, if the block reads others too.

    Raises:
        RecipeError: if the folder is none of a model, or a file cannot be read.
        HubError: if the Hub does not have it or does not give it.
    """
    check_model_path(name)
    is_local = Path(name).expanduser().is_dir()
    try:
        with cache_only(not is_local and not hub_answers(constants.ENDPOINT)):
            yield
    except ToolkitError:
        raise
    except Exception as error:
        line = hub_error(error, name) or broken_files(error, shown or name, Path(name).expanduser())
        if line is None:
            raise
        raise line from error


@functools.cache
def hub_answers(endpoint: str) -> bool:
    """Whether the Hub can be reached; asked once per process."""
    if constants.is_offline_mode():
        return False
    try:
        get_session().head(endpoint, timeout=CHECK_TIMEOUT_S)
    except (HTTPError, OSError):
        return False
    return True


@contextmanager
def cache_only(wanted: bool) -> Iterator[None]:
    """Keep upstream from trying again for a minute per file to reach a Hub that is out of reach."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = wanted or before
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def load_tokenizer(
    name_or_dir: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    padding_side: str = "right",
) -> PreTrainedTokenizerBase:
    """The tokenizer of a base or of a finished run, as it was saved.

    Args:
        name_or_dir: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether the repository's own Python code may run.
        padding_side: where a batch is filled up, "right" for training and "left" for generation.

    Raises:
        RecipeError: if the folder does not exist.
        HubError: if the Hub does not have it or does not give it.
    """
    with loading(str(name_or_dir)):
        return AutoTokenizer.from_pretrained(
            str(name_or_dir),
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            padding_side=padding_side,
        )


def remote_code(recipe: StageRecipe) -> dict[str, Any]:
    """The revision, and whether its code may run: `--trust_remote_code REPO@SHA` names one only."""
    revision = recipe["model_revision"]
    trusted = recipe.written.get("trust_remote_code")
    if not trusted:
        return {"revision": revision, "trust_remote_code": False}
    repo, _, sha = str(trusted).partition("@")
    if repo != recipe["model_name_or_path"]:
        raise RecipeError(
            f"--trust_remote_code names {repo}, but model_name_or_path is "
            f"{recipe['model_name_or_path']}; the code of one named repository is trusted, no other"
        )
    return {"revision": sha, "trust_remote_code": True}


def model_config(recipe: StageRecipe) -> ModelConfig:
    """TRL's ModelConfig of a recipe."""
    try:
        return ModelConfig(**recipe.arguments("ModelConfig"))
    except ValueError as error:
        raise RecipeError(str(error)) from error


def base_arguments(recipe: StageRecipe) -> dict[str, Any]:
    """What `from_pretrained` is given for a recipe's base: revision, dtype, attention, quantization."""
    name = str(recipe["model_name_or_path"])
    config = model_config(recipe)
    hub = remote_code(recipe)
    dtype = device_dtype(name, config.dtype, **hub)
    kwargs: dict[str, Any] = {**hub, "dtype": dtype}
    if config.attn_implementation is not None:
        kwargs["attn_implementation"] = config.attn_implementation
    if config.load_in_4bit or config.load_in_8bit:
        # TRL hands this dtype to bitsandbytes, which knows no "auto"
        config.dtype = declared_dtype(name, **hub) if dtype in {"auto", None} else str(dtype)
        kwargs["quantization_config"] = get_quantization_config(config)
        if torch.cuda.is_available():  # each process holds its own copy, on its own GPU
            kwargs["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    return kwargs | (recipe.get("model_init_kwargs") or {})


def load_base(
    recipe: StageRecipe, auto: Any = AutoModelForCausalLM, *, new: str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The base of a recipe: by id and revision or by path, with dtype, attention and quantization.

    In a pipeline it is the one that is kept in memory, unless it is itself what is trained.

    Args:
        recipe: gives `model_name_or_path` and how it is loaded.
        auto: the class of transformers that loads it.
        new: a weight that need not be in the checkpoint, and is then set to zeros.
        **kwargs: what `from_pretrained` is given besides.

    Raises:
        RecipeError: if the folder does not exist, keys contradict one another, weights are
            missing, which transformers would draw at random, or one is not finite.
        HubError: if the Hub does not have it or does not give it.
    """
    name = str(recipe["model_name_or_path"])
    with loading(name):
        arguments = base_arguments(recipe)
        if recipe.get("use_peft", True):
            lent = kept.lend(name, arguments, auto, lambda: load_anew(name, arguments))
        else:
            kept.drop()  # what is trained whole is no base for what follows
            lent = None
    return load_anew(name, arguments | kwargs, auto, new) if lent is None else lent


def load_anew(
    name: str,
    arguments: Mapping[str, Any],
    auto: Any = AutoModelForCausalLM,
    new: str | None = None,
) -> Any:
    """A base from disk or the Hub, with the arguments of `from_pretrained`; else as `load_base`."""
    with loading(name):
        loaded: Any = auto.from_pretrained(name, output_loading_info=True, **arguments)
    model, found = loaded
    if new in found["missing_keys"]:
        torch.nn.init.zeros_(model.get_parameter(new))
    if missing := sorted(found["missing_keys"] - {new}):
        raise RecipeError(
            f"{name}: {len(missing):,} weights that its config.json asks for are not there, such as "
            f"{missing[0]}; name a checkpoint of a causal language model, whole and of one kind"
        )
    check_weights(name, model)
    return keep_unpacked(model)


def keep_unpacked(model: Any) -> Any:
    """Keep a 4-bit base trainable on a CPU, whatever is evaluated in between.

    bitsandbytes 0.50 (nn/modules.py, Linear4bit.forward) packs the weights for AVX512-BF16 in the
    first evaluation. A packed layer passes no gradient on, silently, and one whose width is no
    multiple of 32 stops there.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def fetch(name: str, revision: str | None = None) -> str:
    """Have all of a model on this machine, and say in which folder: weights, settings, tokenizer.

    Args:
        name: its folder or Hub id.
        revision: branch, tag or commit on the Hub.

    Raises:
        RecipeError: if the folder does not exist.
        HubError: if the Hub does not have it or does not give it.
    """
    with loading(name):
        if (folder := Path(name).expanduser()).is_dir():
            return str(folder)
        wanted = ["*.json", "*.safetensors", "*.model", "*.jinja"]
        return snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]
        )


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a Hub model that is in the cache; None for a folder."""
    if Path(name).expanduser().is_dir():
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def load(
    directory: str | Path, *, dtype: str = "auto", device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of a finished run or of any checkpoint, ready to generate.

    Args:
        directory: an adapter folder (its base is loaded too), a full model's folder, or a Hub id.
        dtype: the dtype of the weights; "auto" is what the checkpoint declares.
        device: where the model goes; by default the accelerator that is there, else the CPU.

    Returns:
        The model in evaluation mode, and its tokenizer with padding on the left.

    Raises:
        RecipeError: if the folder does not exist.
        HubError: if the Hub does not have it or does not give it.
    """
    name = str(directory)
    tokenizer = load_tokenizer(name, padding_side="left")
    adapter = adapter_config(name)
    with loading(name):
        if adapter is None:
            kwargs: dict[str, Any] = {"dtype": device_dtype(name, dtype)}
            model = AutoModelForCausalLM.from_pretrained(name, **kwargs)
            check_weights(name, model)
        else:
            model = load_adapter(name, adapter, dtype=dtype)
    device = device or accelerator()
    if getattr(model, "hf_device_map", None) is None:
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    return model.eval(), tokenizer


def load_adapter(
    name: str,
    adapter: dict[str, Any],
    auto: Any = AutoPeftModelForCausalLM,
    *,
    lent: bool = False,
    **kwargs: Any,
) -> Any:
    """An adapter over its base, by plain PEFT, which makes room for the tokens it brings.

    Args:
        name: the adapter's folder or Hub id.
        adapter: its adapter_config.json.
        auto: the class of PEFT that loads it.
        lent: whether it may go on the base that a pipeline keeps, which is given back afterwards.
        **kwargs: what `from_pretrained` is given for the base.
    """
    if adapter.get("task_type") == "SEQ_CLS" and auto is AutoPeftModelForCausalLM:
        raise RecipeError(
            f"{name} is a reward or value adapter, which judges and does not speak; its scores come "
            "from toolkit.models.reward.load_reward_model, or adapter:NAME in reward_funcs"
        )
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise RecipeError(
            f"{name}/adapter_config.json: base_model_name_or_path names no base, so the adapter "
            "cannot be loaded by itself; write the base's folder or Hub id there"
        )
    with loading(base, shown=f"{name} over {base}"):
        kwargs["dtype"] = device_dtype(
            base, kwargs.get("dtype", "auto"), revision=adapter.get("revision") or "main"
        )
        own = {key: value for key, value in kwargs.items() if key != "num_labels"}
        own["revision"] = adapter.get("revision") or "main"
        under = kept.lend(base, own, auto, lambda: load_anew(base, own)) if lent else None
        if under is not None:
            model: Any = kept.with_adapter_of(under, name)
        else:
            model = keep_unpacked(auto.from_pretrained(name, **kwargs))
    check_weights(name, model)
    if (Path(name) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(name)
        model.get_base_model().generation_config = model.generation_config
    return model


def adapter_config(name: str) -> dict[str, Any] | None:
    """The adapter_config.json of a folder or a Hub id, as a dict; None for a full model.

    Raises:
        RecipeError: if it is no JSON object.
        HubError: if the Hub does not answer, and the cache holds neither an adapter nor a model.
    """
    path = Path(name).expanduser() / "adapter_config.json"
    if not path.parent.is_dir():
        with loading(name):
            found = cached_file(name, path.name, _raise_exceptions_for_missing_entries=False)
        if found is None:
            is_model = isinstance(try_to_load_from_cache(name, "config.json"), str)
            if not is_model and not hub_answers(constants.ENDPOINT):
                raise out_of_reach(name)
            return None
        path = Path(found)
    if not path.is_file():
        return None
    with loading(name):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        found = type(config).__name__
        raise RecipeError(f"{path}: expected a JSON object, found {found}; put the file back")
    return config


def stop_token_ids(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a generation: the tokenizer's stop token and the model's own list."""
    own: Any = tokenizer.eos_token_id
    ids = [] if own is None else [int(own)]
    config = getattr(model, "generation_config", None)
    declared = getattr(config, "eos_token_id", None)
    for token in declared if isinstance(declared, list) else [declared]:
        if token is not None and token not in ids:
            ids.append(int(token))
    return ids
