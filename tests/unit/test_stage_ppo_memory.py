"""The memory of PPO: one base, and adapters of r · (in + out) parameters each; nothing twice."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny_ppo
from toolkit.models.heads import load_scalar_adapter, save_scalar_adapter

pytestmark = tiny_ppo.quiet
ROOT = Path(__file__).resolve().parents[2]
RANK = 4


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_parameters_are_counted_once(head, tiny_base, untied_base, tmp_path):
    base = tiny_base if head == "tied" else untied_base
    model, words = tiny_ppo.policy(base, lora_r=RANK)
    plain = model.get_base_model()
    linear = [m for n, m in plain.named_modules() if n.endswith("_proj")]
    lora = sum(RANK * (layer.in_features + layer.out_features) for layer in linear)
    hidden, rows = 32, 3  # <|im_start|>, <|im_end|> and <|pad|>
    matrices = 1 if head == "tied" else 2
    before = sum(w.numel() for n, w in model.named_parameters() if tiny_ppo.role(n) == "base")

    trainer: Any = tiny_ppo.trainer(model, words, tmp_path, beta=0.1)
    save_scalar_adapter(model, "value", tmp_path / "judge")
    load_scalar_adapter(model, str(tmp_path / "judge"), "reward")
    trainer.mark_trained()
    counted: dict[str, int] = {}
    for name, weight in model.named_parameters():
        role = tiny_ppo.role(name)
        counted[role] = counted.get(role, 0) + weight.numel()
    policy, scalar = lora + matrices * rows * hidden, lora + rows * hidden + hidden
    assert counted == {
        "base": before, "default": policy, "ref": policy, "value": scalar, "reward": scalar,
    }  # fmt: skip
    assert len(linear) == 14
    assert before == 260 * hidden * matrices + sum(
        w.numel() for n, w in plain.named_parameters() if ".base_layer." in n and "_proj" in n
    ) + sum(w.numel() for n, w in plain.named_parameters() if "norm" in n)
    storages = [weight.untyped_storage().data_ptr() for weight in model.parameters()]
    assert len(set(storages)) == len(storages), "two parameters share memory, or one is held twice"
    held = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    buffers = {tensor.untyped_storage().data_ptr() for tensor in model.buffers()}
    assert held <= set(storages) | buffers
    kept = sum(b.numel() for b in model.buffers())
    assert kept < 4 * (matrices + 1) * rows * hidden + 100  # PEFT keeps what each row was

    trainer.train()
    moments = list(trainer.optimizer.state.values())
    assert sum(state["exp_avg"].numel() for state in moments) == policy + scalar
    assert {state["exp_avg"].dtype for state in moments} == {torch.float32}


def memory_table() -> Any:
    path = ROOT / "docs" / "memory_table.py"
    spec: Any = importlib.util.spec_from_file_location("memory_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_docs_is_what_the_command_prints():
    module = memory_table()
    assert module.table() in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    millions, sizes = module.row("7B")
    assert millions[0] == 7615.616512  # as the checkpoint has them
    shapes = [(3584, 3584), (3584, 512), (3584, 512), (3584, 3584), *[(3584, 18944)] * 3]
    assert millions[1] == 28 * 16 * sum(a + b for a, b in shapes) / 1e6
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("way", ["one", "four"])
def test_what_is_counted_is_what_is_in_memory(way):
    line = memory_table().weigh("small", way)
    counted, found = (float(word) for word in re.findall(r"([\d.]+) GB", line)[1::-1])
    assert found == pytest.approx(counted, rel=0.02)
