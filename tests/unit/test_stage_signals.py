"""SIGTERM and SIGINT end a run at the next step with a checkpoint, and nothing that looks finished."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import GRPOTrainer

import toolkit
from tests.faults import drill
from tests.tiny_ppo import quiet
from toolkit import pipeline
from toolkit.artifacts.checkpoint import why_not
from toolkit.artifacts.manifest import RUNNING
from toolkit.errors import Interrupted
from toolkit.rewards.bounded import Bounded
from toolkit.stages import finish, signals
from toolkit.stages.checkpoints import SAVING
from toolkit.stages.sft_trainer import TokenExactSFTTrainer

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
    """Raises signals in the middle of a step, or of the evaluation after it."""

    def __init__(self, step, *numbers, evaluating=False):
        self.step, self.numbers, self.evaluating = step, numbers, evaluating

    def send(self, state):
        if state.global_step == self.step:
            numbers, self.numbers = self.numbers, ()
            for number in numbers:
                signal.raise_signal(number)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not self.evaluating:
            self.send(state)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.evaluating:
            self.send(state)


def sft(base, rows, directory, *callbacks, **keys):
    named = {"model_name_or_path": str(base), "dataset_name": str(rows)}
    return toolkit.sft(output_dir=str(directory), callbacks=list(callbacks), **named, **KEYS | keys)


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


def same(one, other):
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def status_of(run):
    said = json.loads((run / "status.json").read_text())
    return said["status"], said["exit_code"]


@pytest.fixture
def signalled(monkeypatch):
    """Adds a callback to the training in a block; one of the run's own would be an input."""

    @contextmanager
    def within(callback):
        private = finish.keep_private
        with monkeypatch.context() as patch:
            patch.setattr(
                finish, "keep_private",
                lambda trainer, *rest: [trainer.add_callback(callback), private(trainer, *rest)],
            )  # fmt: skip
            yield

    return within


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_a_checkpoint(
    number, code, tiny_base, chats, tmp_path, signalled
):
    run = tmp_path / "run"
    with (
        signalled(Raises(1, number)),
        pytest.raises(KeyboardInterrupt, match=r"after step 2 of 4: .*checkpoint-2") as stop,
    ):
        sft(tiny_base, chats, run)
    assert isinstance(stop.value, Interrupted)
    assert stop.value.exit_code == code
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert status_of(run) == ("interrupted", code)
    names = {path.name for path in run.iterdir()}
    assert "checkpoint-2" in names
    assert not names & {"stage.json", "adapter_model.safetensors", "failure.log", RUNNING, SAVING}
    again = sft(tiny_base, chats, run)
    assert same(again.output_dir, sft(tiny_base, chats, tmp_path / "whole").output_dir)
    assert status_of(run) == ("finished", 0)


EVALUATED = {"max_steps": -1, "num_train_epochs": 2, "test_split_size": 12}  # two epochs of 3 steps
MOMENTS = {
    "an evaluation runs": ({"eval_strategy": "steps", "eval_steps": 2}, Raises(2, 15, evaluating=True), 3),
    "one is due": ({"eval_strategy": "steps", "eval_steps": 2, "save_only_model": True}, Raises(1, 15), 2),
    "one is due at the end of an epoch": ({"eval_strategy": "epoch"}, Raises(2, 15), 3),
    "the last one runs": ({"eval_strategy": "epoch"}, Raises(6, 15, evaluating=True), 6),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "callback", "step"), MOMENTS.values(), ids=MOMENTS)
def test_no_evaluation_is_left_out(keys, callback, step, tiny_base, chats, tmp_path, signalled):
    """What a resumed run measures and trains is what the unbroken one did."""

    def measured(run):
        entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        return {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}

    run, whole = tmp_path / "run", tmp_path / "whole"
    keys = EVALUATED | keys
    with (
        signalled(callback),
        pytest.raises(Interrupted, match=f"after step {step} of 6: .*-{step};"),
    ):
        sft(tiny_base, chats, run, **keys)
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert same(
        sft(tiny_base, chats, run, **keys).output_dir,
        sft(tiny_base, chats, whole, **keys).output_dir,
    )
    assert measured(run) == measured(whole)


@pytest.mark.parametrize(
    ("stage", "method"), [("grpo", "_calculate_rewards"), ("ppo", "_generate")]
)
@quiet
def test_while_a_rollout_is_sampled_or_rewarded(stage, method, tiny_base, tmp_path, monkeypatch):
    """The step is finished; the rest of the rollout is in the checkpoint."""
    keys = drill.STAGES[stage] | {"model": str(tiny_base), "max_steps": 3, "save_strategy": "no"}
    keys |= {"logging_steps": 3}
    run, whole, original = tmp_path / "run", tmp_path / "whole", getattr(GRPOTrainer, method)

    def stopped(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, method, stopped)
        with pytest.raises(Interrupted, match="after step 1 of 3"):
            getattr(toolkit, stage)(output_dir=str(run), **keys)
    assert why_not(run / "checkpoint-1") is None
    for folder in (run, whole):
        getattr(toolkit, stage)(output_dir=str(folder), **keys)
    assert same(run, whole)


def test_the_whole_group_is_told(tiny_base, chats, tmp_path):
    """As by Slurm and systemd: the step needs its data workers to the end."""

    class Group(Raises):
        def send(self, state):
            if state.global_step == self.step:
                workers = psutil.Process().children()
                assert workers
                for worker in workers:  # not by its parent, whose SIGTERM is torch's own way
                    pid = str(worker.pid)
                    subprocess.run(["kill", "-TERM", pid], check=True)
                    subprocess.run(["kill", "-INT", pid], check=True)
                super().send(state)

    keys = {"dataloader_num_workers": 1}
    with pytest.raises(Interrupted, match="after step 2 of 4"):
        sft(tiny_base, chats, tmp_path / "run", Group(1, signal.SIGTERM), **keys)
    assert why_not(tmp_path / "run" / "checkpoint-2") is None


def test_between_two_stages(tiny_base, chats, tmp_path, monkeypatch):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    named = {
        "model_name_or_path": str(tiny_base),
        "dataset_name": str(chats),
        "output_dir": str(run),
    }
    stages = [{"stage": "sft", "name": "one"}, {"stage": "sft", "name": "two", "start_from": "one"}]
    recipe.write_text(yaml.safe_dump(named | KEYS | {"max_steps": 1, "stages": stages}))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "push", lambda *stage: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match=r"^interrupted by SIGTERM$"):
            toolkit.run(recipe)
    assert status_of(run) == ("interrupted", 143)
    assert (run / "one" / "stage.json").is_file()
    assert not (run / "two").exists()
    before = (run / "one" / "stage.json").read_bytes()
    toolkit.run(recipe)
    assert (run / "one" / "stage.json").read_bytes() == before
    assert (run / "two" / "stage.json").is_file()


@pytest.mark.parametrize("numbers", [[15], [2, 2]], ids=["SIGTERM", "SIGINT twice"])
def test_while_a_checkpoint_is_written(numbers, tiny_base, chats, tmp_path, monkeypatch):
    """It is written to its end, or is not there; the one before it stays until then."""
    run, save = tmp_path / "run", TokenExactSFTTrainer._save_optimizer_and_scheduler

    def stopped(self, output_dir):
        for number in numbers if self.state.global_step == 2 else ():
            signal.raise_signal(number)
        save(self, output_dir)

    monkeypatch.setattr(TokenExactSFTTrainer, "_save_optimizer_and_scheduler", stopped)
    keys = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    with pytest.raises(Interrupted):
        sft(tiny_base, chats, run, **keys)
    (left,) = run.glob("checkpoint-*")
    assert left.name == ("checkpoint-3" if len(numbers) == 1 else "checkpoint-1")
    assert why_not(left) is None
    assert not (run / SAVING).exists()


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
        signal.raise_signal(signal.SIGTERM)
    assert request.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_what_is_forked_is_no_second_run(capfd):
    """A worker of the data passes over Ctrl-C, which its owner has too, and ends at SIGTERM."""

    def child():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    with signals.stopping_at_step_end() as request:
        pid = os.fork()
        if not pid:
            child()
            os._exit(0)
        _, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == -signal.SIGTERM
    assert (request.number, capfd.readouterr().out) == (0, "")


def test_ctrl_c_does_not_reach_a_reward_s_own_process():
    square = Bounded("math:sqrt", 60)
    assert square(4) == 2
    assert os.getsid(square.process.pid) != os.getsid(0)
    square._stop()


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
    (line,) = said.splitlines()
    assert line.startswith("interrupted by SIGTERM after step ")
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
