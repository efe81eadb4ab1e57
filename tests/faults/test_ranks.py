"""One of two processes fails: the job ends, with that process's error, and no process is left."""

import json
import os
import random
import signal
import socket
import subprocess
import time

import psutil
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

import toolkit
from tests import tiny
from tests.faults import drill
from tests.faults.forks import Fork
from tests.faults.rank_processes import PATIENCE_S
from tests.launch import command, launched, on_cpu
from toolkit.artifacts.checkpoint import why_not

LAUNCHER_S = 30  # how long torch's launcher waits for a process that it has told to stop


@pytest.fixture
def fail(tiny_base, tmp_path):
    """Runs two processes of which one fails; gives their errors, the run's folder and the time."""
    rows = tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)

    def run(kind):
        began = time.monotonic()
        folder = tmp_path / "run"
        done = launched(
            "accelerate_configs/cpu.yaml",
            "tests.faults.rank_processes",
            kind,
            tiny_base,
            rows,
            folder,
        )
        assert done.returncode != 0
        left = [
            p for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or [])
        ]
        assert not left, "no process may be left"
        lines = done.stderr.splitlines()
        ours = [line for line in lines if "error: " in line or line.startswith("interrupted")]
        assert not (folder / "stage.json").exists()
        status = json.loads((folder / "status.json").read_text())
        return ours, folder, status, time.monotonic() - began

    return run


def is_whole(folder, step, base, tmp_path):
    """The checkpoint of a step is whole: one process alone goes on from it."""
    assert why_not(folder / f"checkpoint-{step}") is None
    model, _ = toolkit.load(folder / f"checkpoint-{step}")
    assert model is not None


@pytest.mark.slow
def test_it_raises(fail, tiny_base, tmp_path):
    errors, folder, status, _ = fail("raises")
    assert any(line.startswith("[process 1] error: AssertionError: a fault of") for line in errors)
    assert "a fault of this process" in (folder / "failure-1.log").read_text()
    assert (
        "process 1 stopped: AssertionError: a fault of this process" in status["error"]["message"]
    )
    assert (status["status"], status["exit_code"]) == ("failed", 5)
    is_whole(folder, 2, tiny_base, tmp_path)


def test_its_loss_is_not_finite(fail, tiny_base, tmp_path):
    errors, folder, status, _ = fail("nan")
    assert len(errors) == 1, "all found it, and one tells"
    assert "step 3 of 4: in process 1 the loss is nan (" in errors[0]
    assert "row " in errors[0]
    assert status["error"]["message"] in errors[0]
    is_whole(folder, 2, tiny_base, tmp_path)


ROUNDS = int(os.environ.get("TOOLKIT_DRILL_ROUNDS", "5"))


def member(rank, port, base, rows, folder):
    """What one of two processes does, in a fork that is joined to the other's."""

    def work():
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        toolkit.sft(
            model_name_or_path=str(base), dataset_name=str(rows), output_dir=str(folder), lora_r=4,
            max_steps=8, per_device_train_batch_size=4, save_steps=1, save_strategy="steps",
            ddp_timeout=PATIENCE_S, lora_dropout=0.1, save_total_limit=2,
        )  # fmt: skip

    return work


@pytest.mark.slow
def test_one_is_killed_at_random_until_it_is_done(tiny_base, tmp_path):
    """Started again, both end with the weights that they would have; nobody waits for ever."""
    rows = tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)

    def started(folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        logs = [folder.with_suffix(f".{rank}.log") for rank in (0, 1)]
        return [Fork(member(rank, port, tiny_base, rows, folder), logs[rank]) for rank in (0, 1)]

    begun = time.monotonic()
    codes = [fork.wait() for fork in started(tmp_path / "whole")]
    takes, kills, chance = time.monotonic() - begun, 0, random.Random(3)
    assert codes == [0, 0], (tmp_path / "whole.1.log").read_text()[-3000:]
    for number in range(ROUNDS):
        run = tmp_path / f"run-{number}"
        for _ in range(30):
            forks = started(run)
            unlucky = chance.randrange(2)
            if forks[unlucky].wait(chance.uniform(0, 1.2 * takes)) is None:
                forks[unlucky].kill()
                kills += 1
            codes = [fork.wait(PATIENCE_S + LAUNCHER_S + 10 * takes) for fork in forks]
            assert None not in codes, "it waits for ever"
            if codes == [0, 0]:
                break
            assert 0 not in codes or (run / "stage.json").is_file()
        assert drill.digest(run) == drill.digest(tmp_path / "whole")
    assert kills >= ROUNDS // 2, "so few prove nothing"


@pytest.mark.slow
def test_it_dies(fail, tiny_base, tmp_path):
    errors, folder, status, _ = fail("dies")
    assert "another process stopped without a word" in errors[0]
    assert status["exit_code"] == 5
    is_whole(folder, 2, tiny_base, tmp_path)


@pytest.mark.slow
def test_it_hangs(fail, tiny_base, tmp_path):
    errors, folder, status, took = fail("hangs")
    assert f"did not come within {PATIENCE_S} s (ddp_timeout)" in errors[0]
    assert status["exit_code"] == 5
    # the start and two steps of a busy machine, besides
    assert took < PATIENCE_S + LAUNCHER_S + 300
    is_whole(folder, 2, tiny_base, tmp_path)


@pytest.mark.slow
def test_one_of_them_is_told_to_stop(fail, tiny_base, tmp_path):
    """All stop at the same step, and write one checkpoint."""
    errors, folder, status, _ = fail("sigterm")
    assert len(errors) == 1
    assert errors[0].startswith("interrupted by SIGTERM after step 3 of 4")
    assert (status["status"], status["exit_code"]) == ("interrupted", 143)
    is_whole(folder, 3, tiny_base, tmp_path)


@pytest.mark.slow
def test_the_launcher_is_told_to_stop(tiny_base, tmp_path):
    """It tells both; they stop at the same step, and write one checkpoint."""
    rows, run = tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS), tmp_path / "run"
    words = ["sft", "--model_name_or_path", tiny_base, "--dataset_name", rows, "--lora_r", "4"]
    words += ["--output_dir", run, "--max_steps", str(10**6), "--save_strategy", "no"]
    words += ["--logging_steps", "1"]
    with subprocess.Popen(
        command("accelerate_configs/cpu.yaml", "toolkit", *words), env=on_cpu(), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as launcher:  # fmt: skip
        while not (run / "log.jsonl").is_file() and launcher.poll() is None:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        _, said = launcher.communicate()
    assert launcher.returncode != 0
    assert sum(line.startswith("interrupted by SIGTERM") for line in said.splitlines()) == 1, said
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", 143)
    (left,) = run.glob("checkpoint-*")
    assert why_not(left) is None
    assert not (run / "stage.json").exists()
