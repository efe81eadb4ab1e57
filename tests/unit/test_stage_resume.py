"""A stage that was interrupted ends as if it had not been, wherever it stopped."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.test_pipeline import sft
from toolkit.artifacts.checkpoint import seal

KEYS = {
    "max_steps": 4, "save_steps": 1, "save_strategy": "steps", "lora_dropout": 0.1,
    "learning_rate": 1e-2, "lr_scheduler_type": "constant",
}  # fmt: skip


def interrupt(run, *gone):
    """Make a finished run one that stopped before its end, without some of its checkpoints."""
    manifest = json.loads((run / "stage.json").read_text())
    (run / "started.json").write_text(json.dumps(manifest["inputs"]))
    (run / "stage.json").unlink()
    for name in gone:
        shutil.rmtree(run / name)


def assert_same(one, other):
    """The same adapter, the same numbers, the same log."""
    weights = [
        load_file(result.output_dir / "adapter_model.safetensors") for result in (one, other)
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for key in ("steps", "train_loss", "loss"):
        assert one.metrics[key] == pytest.approx(other.metrics[key], rel=1e-5), key


def logged(run):
    lines = (run / "log.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines) if "loss" in entry]


def test_from_the_newest_whole_checkpoint(tiny_base, chats, tmp_path, capsys):
    whole = sft(tiny_base, chats, tmp_path / "whole", **KEYS)
    run = tmp_path / "run"
    sft(tiny_base, chats, run, **KEYS)
    interrupt(run, "checkpoint-4")
    (run / "checkpoint-3" / "optimizer.pt").unlink()
    capsys.readouterr()
    resumed = sft(tiny_base, chats, run, **KEYS)
    printed = capsys.readouterr().out
    assert "checkpoint-3 is passed over: optimizer.pt is missing" in printed
    assert "resuming from" in printed
    assert "checkpoint-2" in printed
    assert_same(whole, resumed)
    assert logged(run) == logged(tmp_path / "whole")
    assert "num_tokens" in whole.metrics
    assert "num_tokens" not in resumed.metrics, "TRL counts those after the checkpoint alone"


def test_what_the_checkpoint_holds_is_what_goes_on(tiny_base, chats, tmp_path):
    """A run from scratch ends the same, so only a checkpoint with other weights can tell."""
    whole = sft(tiny_base, chats, tmp_path / "run", **KEYS)
    before = load_file(whole.output_dir / "adapter_model.safetensors")
    interrupt(tmp_path / "run", "checkpoint-4", "checkpoint-3")
    file = tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors"
    save_file({key: value + 0.1 for key, value in load_file(file).items()}, file)
    seal(file.parent)
    after = load_file(
        sft(tiny_base, chats, tmp_path / "run", **KEYS).output_dir / "adapter_model.safetensors"
    )
    moved = [float((after[key] - before[key]).mean()) for key in before]
    assert min(moved) > 0.05


@pytest.mark.parametrize(
    "keys", [{"max_steps": 4}, {"max_steps": 6}, {"max_steps": -1, "num_train_epochs": 1}], ids=str
)
def test_after_the_last_step_none_is_taken_again(keys, tiny_base, chats, tmp_path, capsys):
    """The Trainer itself would take one more step, or at the end of an epoch report a loss of 0."""
    keys = KEYS | {"save_strategy": "no"} | keys  # the last checkpoint is written all the same
    keys["save_strategy"] = "epoch" if keys["max_steps"] == -1 else "steps"
    whole = sft(tiny_base, chats, tmp_path / "whole", **keys)
    run = tmp_path / "run"
    sft(tiny_base, chats, run, **keys)
    last = max(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*"))
    interrupt(run)
    capsys.readouterr()
    again = sft(tiny_base, chats, run, **keys)
    assert "training had ended" in capsys.readouterr().out
    assert_same(whole, again)
    assert not (run / f"checkpoint-{last + 1}").exists()


def test_four_bit_goes_on_in_the_precision_it_began_with(tmp_path, chats):
    """TRL trains these adapters in bfloat16, and resumes them in float32."""
    from tests import tiny

    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    keys = KEYS | {"load_in_4bit": True}
    whole = sft(base, chats, tmp_path / "whole", **keys)
    sft(base, chats, tmp_path / "run", **keys)
    interrupt(tmp_path / "run", "checkpoint-4", "checkpoint-3")
    assert_same(whole, sft(base, chats, tmp_path / "run", **keys))
