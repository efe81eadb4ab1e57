"""One reward training, many ways to compute it: the same losses, the same adapter and head."""

import json

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from tests import tiny
from tests.closeness import assert_close
from tests.equivalence.test_sft_equivalence import assert_same, trajectory
from tests.launch import two_processes
from tests.preferences import PAIRS, RANKED

KEYS = {
    "lora_r": 4, "lora_dropout": 0.0, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
    "logging_steps": 1, "save_strategy": "no", "seed": 3,
}  # fmt: skip


def trainer_of(base, directory, **keys):
    torch.manual_seed(0)
    settings = {
        "model_name_or_path": str(base), "train_dataset": RANKED, "output_dir": str(directory),
        "max_steps": 4, "per_device_train_batch_size": 8,
    }  # fmt: skip
    return toolkit.build("reward", **settings | KEYS | keys)


@pytest.fixture(scope="module")
def canonical(tiny_base, tmp_path_factory):
    return trajectory(trainer_of(tiny_base, tmp_path_factory.mktemp("canonical")))


@pytest.mark.parametrize(
    "keys",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 2, "global_batch_size": 8},
        {"gradient_checkpointing": False},
        {"attn_implementation": "eager"},
        {"pad_to_multiple_of": 64},
    ],
    ids=lambda keys: " ".join(f"{key}={value}" for key, value in keys.items()),
)
def test_same_trajectory(keys, canonical, tiny_base, tmp_path):
    assert_same(canonical, trajectory(trainer_of(tiny_base, tmp_path, **keys)))


def test_the_last_step_of_an_epoch_does_not_depend_on_its_batches(tiny_base, tmp_path):
    """25 pairs in steps of 9: the last has 7, here in one batch and there as 3, 3 and 1."""
    one_more = {"prompt": "One more: ", "answers": ["yes", "no"], "ranks": [1, 2]}
    keys = {"num_train_epochs": 2, "max_steps": -1, "train_dataset": [*RANKED, one_more]}
    whole = trainer_of(tiny_base, tmp_path / "a", per_device_train_batch_size=9, **keys)
    assert len(whole.train_dataset) == 25
    parts = trainer_of(
        tiny_base, tmp_path / "b", per_device_train_batch_size=3, gradient_accumulation_steps=3,
        **keys,
    )  # fmt: skip
    assert_same(trajectory(whole), trajectory(parts))


def test_what_is_held_out_does_not_depend_on_batches(tiny_base, tmp_path):
    found = []
    for size in (1, 2, 5):
        trainer = trainer_of(
            tiny_base, tmp_path / str(size), eval_dataset=PAIRS[:9], train_dataset=PAIRS,
            per_device_eval_batch_size=size,
        )  # fmt: skip
        trainer.train()
        found.append(trainer.evaluate())
    names = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")
    for other in found[1:]:
        for name in names:
            assert_close([other[f"eval_{name}"]], [found[0][f"eval_{name}"]], tolerance=1e-5)
    assert found[0]["eval_margin"] != 0


def test_two_processes_are_one_where_pairs_do_not_divide(tiny_base, tmp_path):
    """23 pairs in batches of 8, held out 7: nothing is trained twice, nothing is counted twice."""
    keys = KEYS | {
        "global_batch_size": 8, "num_train_epochs": 2, "per_device_eval_batch_size": 2,
        "eval_strategy": "epoch",
    }  # fmt: skip
    ranked = [row for row in RANKED if len(row["answers"]) == 3][:5]
    pairs = [
        {"prompt": f"Q{index}: ", "answers": ["yes", "no!"], "ranks": [1, 2]} for index in range(8)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    tiny.save_rows(folder / "train.jsonl", ranked + pairs)
    tiny.save_rows(folder / "test.jsonl", RANKED[6:10])
    one = toolkit.reward(
        model_name_or_path=str(tiny_base), dataset_name=str(folder), output_dir=str(tmp_path / "one"),
        **keys,
    )  # fmt: skip
    assert one.manifest["pairs"]["train"]["pairs"] == 23
    words = keys | {
        "model_name_or_path": tiny_base, "dataset_name": folder, "output_dir": tmp_path / "two",
    }  # fmt: skip
    printed = two_processes("reward", *(w for k, v in words.items() for w in (f"--{k}", v)))
    assert printed.count("held-out pairs:") == 1, "only the first process may print"
    manifest = json.loads((tmp_path / "two" / "stage.json").read_text())
    assert manifest["processes"] == 2
    expected = load_file(one.output_dir / "adapter_model.safetensors")
    found = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for key, value in expected.items():
        assert_close(found[key], value, tolerance=1e-5, name=key)
    assert manifest["metrics"]["steps"] == one.metrics["steps"]
    names = ("loss", "train_loss", "accuracy", "margin", "mean_reward", "eval_loss", "eval_margin")
    for key in names:
        assert_close([manifest["metrics"][key]], [one.metrics[key]], tolerance=1e-5, name=key)
    lines = [(tmp_path / name / "pairs.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1])
    for a, b in zip(*(map(json.loads, part) for part in lines), strict=True):
        assert (a["prompt"], a["chosen"]) == (b["prompt"], b["chosen"])
        assert a["chosen_score"] == pytest.approx(b["chosen_score"], abs=1e-5)
