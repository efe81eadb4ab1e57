"""Checkpoints that are pushed while a stage trains, and training that goes on from them elsewhere."""

import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

import toolkit
from tests import tiny
from tests.hub_stand_in import TOKEN, Fault, environment, in_process, running
from tests.launch import two_processes
from tests.tiny_ppo import odd, quiet
from tests.unit.test_pipeline import sft
from toolkit.artifacts.hub_checkpoint import checkpoint_files, pull_checkpoint, push_checkpoint
from toolkit.errors import HubError, RecipeError, TrainingError
from toolkit.stages import checkpoint_push

KEYS = {
    "max_steps": 4, "save_steps": 1, "save_strategy": "steps", "lora_dropout": 0.1,
    "learning_rate": 1e-2, "lr_scheduler_type": "constant",
}  # fmt: skip
PUSH = {"push_to_hub": True, "hub_model_id": "me/run"}
RESUMED = {
    "adapter_config.json", "adapter_model.safetensors", "checkpoint.json", "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt", "started.json", "trainer_state.json",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    with in_process(monkeypatch) as hub:
        yield hub


class Lost(Exception):
    """The machine is gone."""


def lost_at(step, run):
    """Run until a step of the training, in which the machine is lost."""
    whole = Trainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Lost
        return whole(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", training_step)
        with pytest.raises(Lost):
            run()


def files(hub, below):
    tree = hub["me/run"].at("main")[1]
    return {path.split("/", 1)[1] for path in tree if path.startswith(f"{below}/")}


def weights(run):
    return load_file(run / "adapter_model.safetensors")


def test_what_is_lost_is_taken_up_on_a_bare_machine(hub, tiny_base, chats, tmp_path, capsys):
    """To the bit: weights, optimizer, random numbers and position all come back."""
    whole = sft(tiny_base, chats, tmp_path / "whole", **KEYS).output_dir
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint", "hub_always_push": True}
    lost_at(3, lambda: sft(tiny_base, chats, tmp_path / "one" / "run", **keys))
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
    tree = hub["me/run"].at("main")[1]
    assert tree["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    assert json.loads(tree["last-checkpoint/trainer_state.json"])["global_step"] == 4


def test_a_push_that_fails_is_told_counted_and_tried_again(hub, tiny_base, chats, tmp_path, capsys):
    hub.fault = lambda name: Fault(403) if name == "commit" and hub.calls["commit"] <= 2 else None
    keys = KEYS | PUSH | {"hub_strategy": "all_checkpoints", "hub_always_push": True}
    done = sft(tiny_base, chats, tmp_path / "run", **keys, save_total_limit=4)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("checkpoint-1 was not pushed (your token may not write to me/run") == 2
    assert "tried again at the next save" in printed
    assert "checkpoints pushed to me/run: 4; tries that failed: 2" in printed
    assert done.metrics["steps"] == 4
    for number in range(1, 5):
        assert files(hub, f"checkpoint-{number}") == RESUMED


def test_a_checkpoint_that_the_trainer_removes_is_pushed_all_the_same(
    hub, tiny_base, chats, tmp_path, monkeypatch
):
    """Upload and training go on side by side, and the Trainer keeps one checkpoint."""
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint", "save_total_limit": 1, "max_steps": 3}
    begun, saved = threading.Event(), threading.Event()
    push = checkpoint_push.push_checkpoint

    def slow(copy, *args, **kwargs):
        if copy.name == "checkpoint-1":
            begun.set()
            assert saved.wait(60)
            assert not (tmp_path / "run" / "checkpoint-1").exists()
        return push(copy, *args, **kwargs)

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                assert begun.wait(60)
                saved.set()

    monkeypatch.setattr(checkpoint_push, "push_checkpoint", slow)
    sft(tiny_base, chats, tmp_path / "run", **keys, callbacks=[Watch()])
    state = json.loads(hub["me/run"].at("main")[1]["last-checkpoint/trainer_state.json"])
    assert state["global_step"] == 3
    trees = hub["me/run"].commits.values()
    steps = [json.loads(tree["last-checkpoint/trainer_state.json"])["global_step"]
             for tree in trees if "last-checkpoint/trainer_state.json" in tree]  # fmt: skip
    assert 1 in steps


def test_weights_in_training_go_where_the_finished_ones_go(hub, tiny_base, chats, tmp_path):
    keys = KEYS | PUSH | {"hub_strategy": "every_save", "hub_always_push": True, "max_steps": 2}
    hub.add("me/run", {"stage.json": b"of another", "optimizer.pt": b"mine"}, private=True)
    sft(tiny_base, chats, tmp_path / "run", **keys)
    first, *_, last = [tree for tree in hub["me/run"].commits.values() if "README.md" in tree]
    assert b"Still in training" in first["README.md"]
    assert "stage.json" not in first
    assert first["adapter_model.safetensors"] != last["adapter_model.safetensors"]
    assert b"Still in training" not in last["README.md"]
    assert "stage.json" in last
    assert last["optimizer.pt"] == b"mine"
    assert not any(b"training_args" in name.encode() for name in last)


def test_in_a_pipeline_each_stage_has_its_own(hub, tiny_base, chats, tmp_path, capsys):
    """The finished stage comes back to the bit, so that the next one's checkpoint is of this run."""
    keys = KEYS | {
        "model_name_or_path": str(tiny_base), "dataset_name": str(chats), "lora_r": 4,
        "max_steps": 2, "push_to_hub": True, "hub_model_id": "me/run", "report_to": "none",
        "hub_strategy": "checkpoint", "hub_always_push": True, "resume_from_checkpoint": "hub",
        "stages": [{"stage": "sft", "name": "a"}, {"stage": "sft", "name": "b", "start_from": "a"}],
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys))
    whole = Trainer.training_step
    steps = []

    def second_stage_is_lost(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 4:
            raise Lost
        return whole(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", second_stage_is_lost)
        with pytest.raises(Lost):
            toolkit.run(recipe, output_dir=str(tmp_path / "one" / "run"))
        shutil.rmtree(tmp_path / "one")
        capsys.readouterr()
        toolkit.run(recipe, output_dir=str(tmp_path / "run"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "checkpoint-2 was pulled from me/run-a" in printed
    assert "checkpoint-1 was pulled from me/run-b" in printed
    assert steps == [0, 1, 0, 1, 1], "no step is taken twice but the one that was lost"


def test_of_what_lies_in_a_repository_only_what_resumes_is_pulled(hub, tiny_base, chats, tmp_path):
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint", "hub_always_push": True, "max_steps": 2}
    lost_at(1, lambda: sft(tiny_base, chats, tmp_path / "one" / "run", **keys))
    tree = dict(hub["me/run"].at("main")[1])
    more = {
        f"last-checkpoint/{name}": b"evil" for name in ("training_args.bin", "x/y.py", "run.sh")
    }
    hub.add("me/run", tree | more | {"checkpoint-9/optimizer.pt": b"not whole"})
    run = tmp_path / "run"
    lost_at(1, lambda: sft(tiny_base, chats, run, **keys, resume_from_checkpoint="hub"))
    found = {path.name for path in (run / "checkpoint-1").iterdir()}
    assert found == RESUMED - {"started.json"}


def test_a_pickle_that_runs_code_is_not_read(hub, tiny_base, chats, tmp_path):
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint", "hub_always_push": True, "max_steps": 2}
    lost_at(1, lambda: sft(tiny_base, chats, tmp_path / "one" / "run", **keys))
    code = pickle.dumps(Evil(str(tmp_path / "ran")), protocol=2)
    tree = dict(hub["me/run"].at("main")[1]) | {"last-checkpoint/optimizer.pt": code}
    hub.add("me/run", tree)
    with pytest.raises(
        HubError, match=r"last-checkpoint of me/run is not as it was pushed \(optimizer.pt has"
    ):
        sft(tiny_base, chats, tmp_path / "run", **keys, resume_from_checkpoint="hub")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    hub.add("me/run", {k: v for k, v in tree.items() if not k.endswith("/checkpoint.json")})
    with pytest.raises(TrainingError, match="UnpicklingError: Weights only load failed"):
        sft(tiny_base, chats, tmp_path / "run", **keys, resume_from_checkpoint="hub")
    assert not (tmp_path / "ran").exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_checkpoint_of_another_run_is_refused(hub, tiny_base, chats, tmp_path):
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint", "hub_always_push": True, "max_steps": 2}
    lost_at(1, lambda: sft(tiny_base, chats, tmp_path / "one" / "run", **keys))
    keys |= {"learning_rate": 0.5, "resume_from_checkpoint": "hub"}
    with pytest.raises(RecipeError, match=r"another run \(learning_rate: 0.01 → 0.5\)"):
        sft(tiny_base, chats, tmp_path / "run", **keys)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_damaged_one_here_gives_way(hub, tiny_base, chats, tmp_path, capsys):
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint", "hub_always_push": True, "max_steps": 3}
    run = tmp_path / "run"
    lost_at(2, lambda: sft(tiny_base, chats, run, **keys))
    whole = (run / "checkpoint-2" / "optimizer.pt").read_bytes()
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    sft(tiny_base, chats, run, **keys, resume_from_checkpoint="hub")
    printed = " ".join(capsys.readouterr().out.split())
    assert "checkpoint-2 here (optimizer.pt has 0 bytes" in printed
    assert "checkpoint-2 was pulled from me/run" in printed
    assert (run / "checkpoint-2" / "optimizer.pt").read_bytes() == whole


def test_with_nothing_to_resume_from_training_begins(hub, tiny_base, chats, tmp_path, capsys):
    keys = {"max_steps": 1, "resume_from_checkpoint": "hub", "hub_model_id": "me/none"}
    done = sft(tiny_base, chats, tmp_path / "run", **keys)
    assert "me/none is not there, so there is nothing to resume from" in capsys.readouterr().out
    assert done.metrics["steps"] == 1
    assert not hub.repositories


def test_a_hub_that_fails_while_pulling_is_said(hub, tiny_base, chats, tmp_path):
    hub.fault = lambda name: Fault(403) if name == "info" else None
    keys = {"max_steps": 1, "resume_from_checkpoint": "hub", "hub_model_id": "me/none"}
    with pytest.raises(HubError, match="resume_from_checkpoint: your token may not"):
        sft(tiny_base, chats, tmp_path / "run", **keys)


def test_checkpoints_go_to_no_public_repository(hub, tiny_base, chats, tmp_path):
    hub.add("me/run", {"README.md": b""})
    keys = KEYS | PUSH | {"hub_strategy": "checkpoint"}
    with pytest.raises(HubError, match="me/run is public; checkpoints go to a private one alone"):
        sft(tiny_base, chats, tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists(), "before anything is trained"


def test_a_best_checkpoint_comes_along(hub, tmp_path):
    state = {"global_step": 4, "best_model_checkpoint": "/far/away/checkpoint-2"}
    whole = {"optimizer.pt": b"o", "scheduler.pt": b"s", "adapter_model.safetensors": b"a"}
    tree = {f"checkpoint-{n}/{name}": c for n in (2, 4) for name, c in whole.items()}
    tree |= {f"checkpoint-{n}/trainer_state.json": json.dumps(state).encode() for n in (2, 4)}
    hub.add("me/run", tree | {"checkpoint-10/optimizer.pt": b"half"}, private=True)
    found = pull_checkpoint("me/run", tmp_path)
    assert found == tmp_path / "checkpoint-4"
    pulled = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert pulled["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").read_bytes() == b"a"
    assert pull_checkpoint("me/run", tmp_path) is None, "it is here already"


def test_a_folder_holds_one_checkpoint_and_the_finished_model_stays(hub, tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    for name in RESUMED - {"started.json"}:
        (checkpoint / name).write_bytes(b"{}")
    there = {"last-checkpoint/rng_state_7.pth": b"", "adapter_model.safetensors": b"finished"}
    hub.add("me/run", there, private=True)
    push_checkpoint(checkpoint, "me/run", "last-checkpoint")
    assert files(hub, "last-checkpoint") == RESUMED - {"started.json"}
    _, tree = hub["me/run"].at("main") or ("", {})
    assert tree["adapter_model.safetensors"] == b"finished"
    (checkpoint / "optimizer.pt").write_text(f"token {TOKEN}")
    with pytest.raises(HubError, match=r"optimizer.pt: looks as if it held a secret"):
        push_checkpoint(checkpoint, "me/run", "last-checkpoint")


def test_every_process_finds_its_random_numbers(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-2"
    (checkpoint / "value").mkdir(parents=True)
    for name in (*RESUMED, "rng_state_0.pth", "rng_state_1.pth", "scaler.pt", "training_args.bin",
                 "value/adapter_model.safetensors", "value/tokenizer.json"):  # fmt: skip
        (checkpoint / name).write_bytes(b"{}")
    wanted = RESUMED - {"started.json"} | {
        "rng_state_0.pth", "rng_state_1.pth", "scaler.pt", "value/adapter_model.safetensors"
    }  # fmt: skip
    assert set(checkpoint_files(checkpoint, tmp_path)) == wanted
    (checkpoint / "scheduler.pt").unlink()
    with pytest.raises(HubError, match=r"incomplete: scheduler.pt is missing"):
        checkpoint_files(checkpoint, tmp_path)


@pytest.mark.slow
@quiet
def test_ppo_goes_on_elsewhere_critic_and_all(hub, tiny_base, tmp_path):
    rows = [{"prompt": f"{'ab' * (index % 4)}{index}"} for index in range(8)]
    keys = {
        "model_name_or_path": str(tiny_base), "lora_r": 4, "reward_funcs": [odd],
        "dataset_name": str(tiny.save_rows(tmp_path / "prompts.jsonl", rows)), "max_steps": 4,
        "num_iterations": 1, "per_device_train_batch_size": 4, "max_completion_length": 6,
        "save_steps": 1, "save_strategy": "steps", "learning_rate": 1e-2, "report_to": "none",
    }  # fmt: skip
    whole = toolkit.ppo(**keys, output_dir=str(tmp_path / "whole")).output_dir
    keys |= PUSH | {"hub_strategy": "checkpoint", "hub_always_push": True}
    lost_at(3, lambda: toolkit.ppo(**keys, output_dir=str(tmp_path / "one" / "run")))
    assert "value/adapter_model.safetensors" in files(hub, "last-checkpoint")
    shutil.rmtree(tmp_path / "one")
    keys |= {"resume_from_checkpoint": "hub", "output_dir": str(tmp_path / "run")}
    run = toolkit.ppo(**keys).output_dir
    assert (run / "checkpoint-3").is_dir()
    for place in (".", "value"):
        before, after = weights(whole / place), weights(run / place)
        assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


@pytest.mark.slow
def test_two_processes_go_on_elsewhere(tiny_base, chats, tmp_path, monkeypatch):
    keys = KEYS | PUSH | {"hub_strategy": "all_checkpoints", "hub_always_push": True, "lora_r": 4}
    keys |= {"model_name_or_path": tiny_base, "dataset_name": chats, "max_steps": 3}
    words = [w for key, value in keys.items() for w in (f"--{key}", value)]
    with running() as hub:
        for name, value in environment(hub, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        two_processes("sft", *words, "--output_dir", tmp_path / "one")
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= files(hub, "checkpoint-2")
        _, tree = hub["me/run"].at("main") or ("", {})
        early = {path: content for path, content in tree.items() if "checkpoint-3/" not in path}
        hub.add("me/run", early)
        words += ["--resume_from_checkpoint", "hub"]
        printed = two_processes("sft", *words, "--output_dir", tmp_path / "two")
    assert "checkpoint-2 was pulled from me/run" in printed
    before, after = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
