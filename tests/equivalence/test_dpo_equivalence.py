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
from toolkit.stages.dpo_trainer import MEANS, blank_loss, blank_pair, is_pair

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
        "start_from": str(parent) if parent else None, "per_device_train_batch_size": 8,
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


def test_two_processes_are_one(tiny_base, parent, tmp_path):
    """Pairs that do not divide: nothing is trained twice, nothing counted twice."""
    pairs = PAIRS[:19]
    keys = KEYS | {
        "max_steps": -1, "num_train_epochs": 2, "start_from": str(parent), "global_batch_size": 8,
        "learning_rate": 1e-3,
    }  # fmt: skip
    one = toolkit.dpo(
        model_name_or_path=str(tiny_base), train_dataset=pairs, output_dir=str(tmp_path / "one"),
        **keys,
    )  # fmt: skip
    assert one.metrics["steps"] == 6
    rows = tiny.save_rows(tmp_path / "rows.jsonl", pairs)
    words = keys | {
        "model_name_or_path": tiny_base, "dataset_name": rows, "output_dir": tmp_path / "two",
    }  # fmt: skip
    printed = two_processes("dpo", *(w for k, v in words.items() for w in (f"--{k}", v)))
    assert printed.count("━━ dpo") == 1, "only the first process may print"
    saved = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, value in load_file(one.output_dir / "adapter_model.safetensors").items():
        assert_close(saved[name], value, tolerance=1e-5, name=name)
    metrics = json.loads((tmp_path / "two" / "stage.json").read_text())["metrics"]
    for key in ("loss", "train_loss", "grad_norm", *MEANS):
        assert_close([metrics[key]], [one.metrics[key]], tolerance=1e-4, name=key)


LOSSES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
]  # fmt: skip


def test_the_loss_of_a_blank_pair_is_trl_s_and_teaches_nothing(tiny_base, tmp_path):
    trainer = trainer_of(
        tiny_base, None, tmp_path, loss_type=LOSSES, loss_weights=[1.0] * len(LOSSES),
        label_smoothing=0.1,
    )  # fmt: skip
    for name in LOSSES:
        trainer.loss_types, trainer.loss_weights = [name], [1.5]
        batch = trainer.data_collator([blank_pair(trainer.train_dataset[row]) for row in range(2)])
        assert not is_pair(batch).any()
        trainer.model.train()
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        assert_close([float(loss.detach())], [blank_loss(trainer)], tolerance=1e-5, name=name)
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        assert not any(gradient.any() for gradient in gradients), name
    whole = trainer.data_collator([trainer.train_dataset[0], blank_pair(trainer.train_dataset[1])])
    assert is_pair(whole).tolist() == [True, False]
