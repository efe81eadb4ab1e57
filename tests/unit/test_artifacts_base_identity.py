"""Which base it is: the same weights in other files are the same base, the same shapes are not."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from toolkit.artifacts.base_identity import base_differences, base_identity


@pytest.fixture
def base(tmp_path):
    return tiny.save_base(tmp_path / "base")


def test_the_same_base_is_the_same(base):
    identity = base_identity(str(base))
    assert all(identity[part] for part in ("config", "tokenizer", "weights", "samples"))
    assert base_differences(identity, base_identity(str(base))) == []


def test_weights_that_were_cut_anew_are_the_same(base):
    before = base_identity(str(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="30KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    now = base_identity(str(base))
    assert now["weights"] != before["weights"]
    assert base_differences(before, now) == []


@pytest.mark.parametrize("row", [0, 5])  # sampled and not
def test_one_weight_that_differs_is_another_base(row, base):
    before = base_identity(str(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[row, 5] += 1e-3
    model.save_pretrained(base)
    assert base_differences(before, base_identity(str(base))) == ["its weights"]


def test_another_base_of_the_same_shapes_is_told_by_its_weights(base, tmp_path):
    other = base_identity(str(tiny.save_base(tmp_path / "other", seed=7)))
    assert base_differences(base_identity(str(base)), other) == ["its weights"]


def test_config_and_tokenizer_count_and_who_saved_them_does_not(base):
    before = base_identity(str(base))
    path = base / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"transformers_version": "1.0"}))
    assert base_differences(before, base_identity(str(base))) == []
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    (base / "tokenizer.json").write_text("{}")
    assert base_differences(before, base_identity(str(base))) == [
        "its config.json",
        "its tokenizer",
    ]


def test_the_same_commit_is_the_same_and_nothing_known_is_not_comparable(base):
    here = base_identity(str(base))
    nowhere = base_identity("somebody/never-downloaded")
    assert nowhere == {"name": "somebody/never-downloaded", "commit": None}
    assert base_differences(here, nowhere) is base_differences(nowhere, here) is None
    assert base_differences(None, here) is None
    commit = {"name": "a/b", "commit": "1" * 40}
    assert base_differences(commit | {"weights": "a"}, commit | {"weights": "b"}) == []
