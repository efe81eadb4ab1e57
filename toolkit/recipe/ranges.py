"""The range of each number, and how messages show a value."""

import re
from typing import Any, cast

from toolkit.errors import RecipeError

RANGES = {
    "learning_rate": "(0, inf)",
    "value_learning_rate": "(0, inf)",
    "per_device_train_batch_size": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "global_batch_size": "[1, inf)",
    "generation_batch_size": "[1, inf)",
    "precompute_ref_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "eval_accumulation_steps": "[1, inf)",
    "steps_per_generation": "[1, inf)",
    "ref_model_sync_steps": "[1, inf)",
    "max_steps": "-1 or [1, inf)",
    "num_train_epochs": "(0, inf)",
    "warmup_steps": "[0, inf)",
    "logging_steps": "(0, inf)",
    "save_steps": "(0, inf)",
    "eval_steps": "[0, inf)",
    "eval_delay": "[0, inf)",
    "save_total_limit": "[0, inf)",
    "weight_decay": "[0, inf)",
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "[0, inf)",
    "max_grad_norm": "[0, inf]",
    "label_smoothing_factor": "[0, 1)",
    "label_smoothing": "[0, 1)",
    "neftune_noise_alpha": "[0, inf)",
    "seed": "[0, 4294967295]",
    "data_seed": "[0, 4294967295]",
    "dataloader_num_workers": "[0, inf)",
    "dataloader_prefetch_factor": "[1, inf)",
    "dataset_num_proc": "[1, inf)",
    "torch_empty_cache_steps": "[1, inf)",
    "ddp_timeout": "[1, inf)",
    "lora_r": "[1, inf)",
    "lora_alpha": "(0, inf)",
    "lora_dropout": "[0, 1)",
    "max_length": "[2, inf)",
    "max_bad_rows": "[0, inf)",
    "vocab_size": "[257, inf)",
    "pad_to_multiple_of": "[1, inf)",
    "test_split_size": "(0, 1) or [1, inf)",
    "beta": "[0, inf)",
    "ld_alpha": "[0, 1]",
    "discopop_tau": "(0, inf)",
    "ref_model_mixup_alpha": "[0, 1]",
    "center_rewards_coefficient": "[0, inf)",
    "temperature": "[0, inf)",
    "top_p": "(0, 1]",
    "top_k": "[0, inf)",
    "min_p": "[0, 1]",
    "repetition_penalty": "(0, inf)",
    "num_generations": "[1, inf)",
    "num_generations_eval": "[1, inf)",
    "max_completion_length": "[1, inf)",
    "num_iterations": "[1, inf)",
    "num_few_shot": "[0, inf)",
    "rounds": "[1, inf)",
    "max_per_problem": "[1, inf)",
    "epsilon": "(0, inf)",
    "epsilon_high": "(0, inf)",
    "delta": "(0, inf)",
    "top_entropy_quantile": "[0, 1]",
    "vllm_gpu_memory_utilization": "(0, 1]",
    "vllm_tensor_parallel_size": "[1, inf)",
    "vllm_max_model_length": "[1, inf)",
    "vf_coef": "[0, inf)",
    "gamma": "[0, 1]",
    "lam": "[0, 1]",
    "cliprange_value": "(0, inf)",
    "missing_eos_penalty": "[0, inf)",
    "reward_timeout": "(0, inf)",
    "max_reward_errors": "[0, 1]",
}
# Below 1 a share of all steps, above it a count.
SHARE_OR_COUNT = {"warmup_steps", "logging_steps", "save_steps", "eval_steps", "test_split_size"}
INTERVAL = re.compile(r"([\[(])(.+), (.+)([\])])")


LARGEST = 2**63 - 1  # what a tensor can hold


def shown(value: Any) -> str:
    """A value in a message: YAML's words for null and booleans, at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    is_plain = isinstance(value, str | bytes | int | float | list | dict | tuple)
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a whole number beyond 64 bits"
    text = repr(cast(object, value)) if is_plain else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_range(key: str, value: Any, where: str) -> None:
    """Check a number, or each of a list; NaN is nowhere a value, the rest is in RANGES.

    Raises:
        RecipeError: if it is out of its range.
    """
    if isinstance(value, list):
        for item in cast(list[Any], value):
            check_range(key, item, where)
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if value != value or (isinstance(value, int) and abs(value) > LARGEST):
        raise RecipeError(f"{where}: {key} must be a number, found {shown(value)}")
    if key in RANGES and not any(_within(part, value) for part in RANGES[key].split(" or ")):
        raise RecipeError(f"{where}: {key} must be {in_words(RANGES[key])}, found {shown(value)}")
    if key in SHARE_OR_COUNT and value > 1 and value != int(value):
        raise RecipeError(
            f"{where}: {key} must be a whole number or a share below 1, found {value}"
        )


def _within(part: str, value: float) -> bool:
    interval = INTERVAL.fullmatch(part)
    if interval is None:
        return value == float(part)
    opening, low, high, closing = interval.groups()
    above = value >= float(low) if opening == "[" else value > float(low)
    return above and (value <= float(high) if closing == "]" else value < float(high))


def in_words(allowed: str) -> str:
    """A range of RANGES as a message says it."""
    found: list[str] = []
    for part in allowed.split(" or "):
        interval = INTERVAL.fullmatch(part)
        if interval is None:
            found.append(part)
        elif interval[3] == "inf":
            comparison = ">=" if interval[1] == "[" else ">"
            found.append(f"{comparison} {interval[2]}")
        else:
            found.append(f"in {part}")
    return " or ".join(found)
