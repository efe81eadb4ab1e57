"""One DPO training, many ways to compute it: the same losses and the same adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from tests import tiny
from tests.closeness import assert_close
from tests.equivalence.test_sft_equivalence import assert_same, trajectory
from tests.launch import two_processes
from tests.preferences import PAIRS

KEYS = {
    "learning_rate": 1e-3, "lr_scheduler_type": "constant", "logging_steps": 1, "max_steps": 4,
    "save_strategy": "no", "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def parent(tiny_base, tmp_path_factory):
    result = toolkit.sft(
        model=str(tiny_base), train_dataset=tiny.ROWS, max_steps=6, learning_rate=2e-2, lora_r=4,
        lora_dropout=0.0, output_dir=str(tmp_path_factory.mktemp("sft")),
    )  # fmt: skip
    return result.output_dir


def trainer_of(base, parent, directory, **keys):
    torch.manual_seed(0)
    settings = {
        "model_name_or_path": str(base), "train_dataset": PAIRS, "output_dir": str(directory),
        "start_from": str(parent), "per_device_train_batch_size": 8,
    }  # fmt: skip
    return toolkit.build("dpo", **settings | KEYS | keys)


@pytest.fixture(scope="module")
def canonical(tiny_base, parent, tmp_path_factory):
    return trajectory(trainer_of(tiny_base, parent, tmp_path_factory.mktemp("canonical")))


@pytest.mark.parametrize(
    "keys",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"gradient_checkpointing": False},
        {"precompute_ref_log_probs": True},
    ],
    ids=lambda keys: " ".join(f"{key}={value}" for key, value in keys.items()),
)
def test_same_trajectory(keys, canonical, tiny_base, parent, tmp_path):
    assert_same(canonical, trajectory(trainer_of(tiny_base, parent, tmp_path, **keys)))


def test_two_processes_are_one(canonical, tiny_base, parent, tmp_path):
    rows = tiny.save_rows(tmp_path / "rows.jsonl", PAIRS)
    words = KEYS | {
        "model_name_or_path": tiny_base, "dataset_name": rows, "output_dir": tmp_path / "two",
        "start_from": parent, "global_batch_size": 8,
    }  # fmt: skip
    printed = two_processes("dpo", *(w for k, v in words.items() for w in (f"--{k}", v)))
    assert printed.count("━━ dpo") == 1, "only the first process may print"
    saved = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, value in canonical[1].items():
        assert_close(saved[name.replace(".default", "")], value, tolerance=1e-5, name=name)
    metrics = json.loads((tmp_path / "two" / "stage.json").read_text())["metrics"]
    assert_close([metrics["loss"]], canonical[0][-1:], tolerance=1e-5)
