"""Types and ranges of single values, from files, flags and Python."""

import enum
from pathlib import Path

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import STAGES, keys_of
from toolkit.recipe.ranges import INTERVAL, RANGES
from toolkit.recipe.values import ALSO_TAKES, JSON_FILES, Given, convert, expected


def value(key, given, origin="file", stage="sft"):
    return convert(keys_of(stage)[key], Given(given, "x.yaml:1", origin))


class Scheduler(enum.Enum):
    COSINE = "cosine"


ACCEPTED = [
    ("learning_rate", 2e-4, 2e-4), ("learning_rate", 1, 1), ("learning_rate", "2e-4", 2e-4),
    ("max_steps", -1, -1), ("max_steps", 10, 10), ("max_length", None, None), ("packing", True, True),
    ("packing", "yes", True), ("bf16", None, None), ("dtype", "bfloat16", "bfloat16"),
    ("lr_scheduler_type", "cosine", "cosine"), ("lr_scheduler_type", Scheduler.COSINE, "cosine"),
    ("eval_strategy", "no", "no"), ("optim", "adamw_8bit", "adamw_8bit"), ("fsdp", True, True),
    ("lora_target_modules", "all-linear", "all-linear"), ("lora_target_modules", ["q"], ["q"]),
    ("lora_target_modules", ("q", "v"), ["q", "v"]), ("lora_modules_to_save", "lm_head", ["lm_head"]),
    ("model_init_kwargs", {"max_memory": {0: "1GiB"}}, {"max_memory": {0: "1GiB"}}),
    ("model_init_kwargs", '{"use_cache": false}', {"use_cache": False}),
    ("deepspeed", "zero3.json", "zero3.json"), ("deepspeed", {"stage": 3}, {"stage": 3}),
    ("report_to", ["wandb"], ["wandb"]), ("report_to", "none", "none"), ("test_split_size", 0.1, 0.1),
    ("test_split_size", 100, 100), ("pad_to_multiple_of", "8", "8"), ("pad_to_multiple_of", 8, 8),
    ("warmup_steps", 0.1, 0.1), ("warmup_steps", 100, 100), ("log_level", "debug", "debug"),
    ("output_dir", Path("runs"), "runs"), ("trackio_static_space_id", False, False),
    ("max_grad_norm", float("inf"), float("inf")), ("dataset_num_proc", None, None),
    ("parallelism_config", None, None), ("debug", "underflow_overflow", "underflow_overflow"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "result"), ACCEPTED)
def test_accepted(key, given, result):
    found = value(key, given)
    assert found == result
    assert type(found) is type(result)


REFUSED = [
    ("learning_rate", float("nan"), "must be a number, found nan"),
    ("learning_rate", float("inf"), "must be > 0, found inf"),
    ("learning_rate", 0, "must be > 0, found 0"), ("learning_rate", -1e-4, "must be > 0"),
    ("learning_rate", [1, 2], "must be a number, found [1, 2]"),
    ("learning_rate", True, "must be a number, found true"),
    ("learning_rate", None, "must be a number, found null"),
    ("learning_rate", 10**400, "must be a number, found a whole number beyond 64 bits"),
    ("max_steps", 2.5, "must be a whole number, found 2.5"),
    ("max_steps", 1e3, "must be a whole number, found 1000.0; write 1000"),
    ("max_steps", 0, "must be -1 or >= 1, found 0"), ("max_steps", "many", "found 'many'"),
    ("max_steps", 2**63, "beyond 64 bits"),
    ("per_device_train_batch_size", -3, "must be >= 1, found -3"), ("num_train_epochs", 0, "> 0"),
    ("packing", 1, "must be true or false, found 1"), ("packing", "maybe", "true or false"),
    ("run_name", 5, "must be text or null, found 5; write '5' in quotes"),
    ("dtype", "bf16", "one of auto, bfloat16, float16, float32, found 'bf16'; did you mean 'bfloat16'?"),
    ("lr_scheduler_type", "cosin", "found 'cosin'; did you mean 'cosine'?"),
    ("optim", "adamw_8bits", "did you mean 'adamw_8bit'?"), ("eval_strategy", False, "found false"),
    ("log_level", "loud", "one of"), ("lora_r", 0, ">= 1"), ("lora_dropout", 1, "in [0, 1)"),
    ("max_length", 1, ">= 2"), ("test_split_size", 1.5, "whole number or a share below 1"),
    ("test_split_size", 0, "in (0, 1) or >= 1"), ("warmup_steps", 2.5, "share below 1"),
    ("warmup_steps", -1, ">= 0"), ("seed", 2**32, "in [0, 4294967295]"), ("seed", -1, "in [0"),
    ("model_init_kwargs", "x.json", "must be a mapping or null, found 'x.json'"),
    ("model_init_kwargs", {1: 2}, "must be a mapping"), ("liger_kernel_config", {"rope": 3}, "mapping"),
    ("lora_modules_to_save", [1], "must be a list of words or null, found [1]"),
    ("trackio_static_space_id", True, "must be"), ("datasets", ["a"], "a list of mappings"),
    ("parallelism_config", {"tp_size": 2}, "must be null, found"),
    ("model_name_or_path", {"a": 1}, "must be text or null"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "message"), REFUSED)
def test_refused(key, given, message):
    with pytest.raises(RecipeError) as error:
        value(key, given)
    assert str(error.value).startswith(f"x.yaml:1: {key} must be ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "words", "result"),
    [
        ("packing", [], True), ("packing", ["false"], False), ("fsdp", [], True), ("run_name", ["5"], "5"),
        ("learning_rate", ["1e-4"], 1e-4), ("max_length", ["null"], None), ("run_name", ["[a]"], "[a]"),
        ("run_name", ["#1: x"], "#1: x"), ("model_revision", ["1e5"], "1e5"), ("eos_token", [""], ""),
        ("eos_token", ["<|im_end|>"], "<|im_end|>"), ("max_steps", ["-1"], -1),
        ("lora_target_modules", ["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        ("lora_target_modules", ["[q_proj, v_proj]"], ["q_proj", "v_proj"]),
        ("lora_target_modules", ["all-linear"], "all-linear"), ("pad_to_multiple_of", ["8"], 8),
        ("model_init_kwargs", ['{"a": 1e-4}'], {"a": 1e-4}), ("report_to", ["a", "b"], ["a", "b"]),
    ],
)  # fmt: skip
def test_flags(key, words, result):
    found = value(key, words, origin="flag")
    assert found == result
    assert type(found) is type(result)


def test_flags_refused():
    with pytest.raises(RecipeError, match=r"max_steps must be a whole number, found '2\.5'"):
        value("max_steps", ["2.5"], origin="flag")
    with pytest.raises(RecipeError, match="max_steps must be a whole number, found \\['1', '2'\\]"):
        value("max_steps", ["1", "2"], origin="flag")


def test_the_tables_speak_of_keys():
    known = {key for stage in STAGES for key in keys_of(stage)}
    assert set(RANGES) <= known
    assert set(ALSO_TAKES) <= known
    assert set(JSON_FILES) <= known
    for allowed in RANGES.values():
        for part in allowed.split(" or "):
            assert INTERVAL.fullmatch(part) or float(part)


@pytest.mark.parametrize("stage", STAGES)
def test_every_upstream_default_passes_its_own_check(stage):
    for key in keys_of(stage).values():
        if key.name not in ("stage", "name"):
            assert convert(key, Given(key.default, "default", "keyword")) == key.default, key.name
            assert expected(key)
