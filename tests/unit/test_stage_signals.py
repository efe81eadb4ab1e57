"""SIGTERM and SIGINT end a run at the next step with a checkpoint, and nothing that looks finished."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

import toolkit
from toolkit.errors import Interrupted
from toolkit.stages import finish, signals

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "lora_r": 4, "max_steps": 4, "save_strategy": "no", "logging_steps": 1, "lora_dropout": 0.1,
    "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [],
}  # fmt: skip


@pytest.fixture(autouse=True)
def handled():
    """Both signals as Python has them, whatever a shell has handed down; and back at the end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Raises(TrainerCallback):
    """Raises signals in the middle of a step."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for number in self.numbers if state.global_step == self.step else ():
            signal.raise_signal(number)


def sft(base, rows, directory, *callbacks, **keys):
    named = {"model_name_or_path": str(base), "dataset_name": str(rows)}
    return toolkit.sft(output_dir=str(directory), callbacks=list(callbacks), **named, **KEYS | keys)


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_a_checkpoint(
    number, code, tiny_base, chats, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        # a callback of the run's own would be an input, which may not change
        private = finish.keep_private
        patch.setattr(
            finish, "keep_private",
            lambda trainer, *rest: [trainer.add_callback(Raises(1, number)), private(trainer, *rest)],
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt, match=r"after step 2 of 4: .*checkpoint-2") as stop:
            sft(tiny_base, chats, run)
    assert isinstance(stop.value, Interrupted)
    assert stop.value.exit_code == code
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", code)
    names = {path.name for path in run.iterdir()}
    assert "checkpoint-2" in names
    assert not names & {"stage.json", "adapter_model.safetensors", "failure.log"}
    again = sft(tiny_base, chats, run)
    whole = sft(tiny_base, chats, tmp_path / "whole")
    ours, theirs = weights(again.output_dir), weights(whole.output_dir)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


def test_a_second_sigint_stops_at_once(tiny_base, chats, tmp_path):
    with pytest.raises(Interrupted, match="stopped at once"):
        sft(tiny_base, chats, tmp_path / "run", Raises(1, signal.SIGTERM, signal.SIGINT))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", 130)


def test_a_further_sigterm_changes_nothing():
    with signals.stopping_at_step_end() as request:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert request.number == signal.SIGINT


def test_where_nothing_is_trained_it_ends_at_once(tiny_base, chats, tmp_path, monkeypatch):
    """While the artefact is written, the last checkpoint is there already."""

    def save(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(finish, "measured", save)
    with pytest.raises(Interrupted, match=r"^interrupted by SIGTERM$"):
        sft(tiny_base, chats, tmp_path / "run", save_strategy="steps", max_steps=1)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", 143)
    assert not (tmp_path / "run" / "stage.json").exists()


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a command that nohup has started
    with signals.stopping_at_step_end() as request:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == request.handle
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_leaves_signals_alone():
    found = []

    def work():
        with signals.stopping_at_once(), signals.stopping_at_step_end():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_an_error_in_the_last_step_is_still_an_interruption(tiny_base, chats, tmp_path):
    """A launcher's signal ends data workers and other processes too, in the middle of the step."""

    class Dies(Raises):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            super().on_pre_optimizer_step(args, state, control, **kwargs)
            if state.global_step == self.step:
                raise RuntimeError("DataLoader worker exited unexpectedly")

    run = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"after step 1 of 4: .*checkpoint-1") as stop:
        sft(tiny_base, chats, run, Dies(1, signal.SIGTERM), save_strategy="steps", save_steps=1)
    assert stop.value.exit_code == 143


def test_nothing_is_pushed(tiny_base, chats, tmp_path, monkeypatch):
    from toolkit.stages.checkpoint_push import CheckpointPush

    saved = []

    class Pushes(CheckpointPush):
        def __init__(self):
            pass

        def on_save(self, args, state, control, **kwargs):
            saved.append(state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            pass

    keys = {"save_strategy": "steps", "save_steps": 1}
    with pytest.raises(Interrupted):
        sft(tiny_base, chats, tmp_path / "run", Pushes(), Raises(1, signal.SIGTERM), **keys)
    assert saved == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent SIGTERM there")
def test_the_command_ends_with_143(tiny_base, chats, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    named = {"stage": "sft", "model_name_or_path": str(tiny_base), "dataset_name": str(chats)}
    keys = KEYS | {"max_steps": 10**6, "output_dir": str(tmp_path / "run")}
    recipe.write_text(yaml.safe_dump(named | keys))
    command = [sys.executable, "-m", "toolkit", "run", str(recipe)]
    log = tmp_path / "run" / "log.jsonl"
    with subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        while not log.is_file() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 143, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("interrupted by SIGTERM after step ")
    assert "Traceback" not in said
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
