"""Checkpoints that are pushed while a stage trains, and training that goes on from them elsewhere."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from tests.hub_stand_in import Fault, in_process
from tests.unit.test_pipeline import sft
from toolkit.errors import HubError, RecipeError
from toolkit.stages import pushing

KEYS = {
    "max_steps": 4, "save_steps": 1, "save_strategy": "steps", "lora_dropout": 0.1,
    "learning_rate": 1e-2, "lr_scheduler_type": "constant",
}  # fmt: skip
PUSH = {"push_to_hub": True, "hub_model_id": "me/run"}
RESUMED = {
    "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth",
    "scheduler.pt", "started.json", "trainer_state.json",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    with in_process(monkeypatch) as hub:
        yield hub


class Stopped(Exception):
    """A notebook that is lost."""


@pytest.fixture
def lose(monkeypatch):
    """Make every run end in the middle of a step; gives how to let them go on."""

    def at(step, **given):
        from trl import SFTTrainer

        whole = SFTTrainer.training_step

        def training_step(self, *args, **kwargs):
            if self.state.global_step == step:
                raise Stopped
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(SFTTrainer, "training_step", training_step)
        with pytest.raises(Stopped):
            given.pop("run")()
        monkeypatch.setattr(SFTTrainer, "training_step", whole)

    return at


def files(hub, below):
    tree = hub["me/run"].at("main")[1]
    return {path.split("/", 1)[1] for path in tree if path.startswith(f"{below}/")}


def weights(run):
    return load_file(run / "adapter_model.safetensors")


def test_what_is_lost_is_taken_up_on_a_bare_machine(
    hub, lose, tiny_base, chats, tmp_path, capsys
):
    """To the bit: weights, optimizer, random numbers and position all come back."""
    whole = sft(tiny_base, chats, tmp_path / "whole", **KEYS).output_dir
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint", "hub_always_push": True}
    lose(3, run=lambda: sft(tiny_base, chats, tmp_path / "one" / "run", **keys))
    assert files(hub, "last-checkpoint") == RESUMED
    assert hub["me/run"].private
    tree = hub["me/run"].at("main")[1]
    assert not any(str(tmp_path).encode() in tree[f"last-checkpoint/{name}"] for name in RESUMED)
    assert "adapter_model.safetensors" not in tree, "nothing that was not proved"
    shutil.rmtree(tmp_path / "one")
    capsys.readouterr()
    run = tmp_path / "another" / "run"
    done = sft(tiny_base, chats, run, **keys, resume_from_checkpoint="hub")
    printed = capsys.readouterr().out
    assert "checkpoint-3 was pulled from me/run" in printed
    assert "resuming from" in printed
    assert all(torch.equal(tensor, weights(whole)[key]) for key, tensor in weights(run).items())
    assert done.metrics["steps"] == 4
    assert not list(run.glob(".hub-*"))
    assert not (run / "training_args.bin").exists()
    assert "checkpoint-4" in capsys.readouterr().out or True
    tree = hub["me/run"].at("main")[1]
    assert tree["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    assert json.loads(tree["last-checkpoint/trainer_state.json"])["global_step"] == 4
