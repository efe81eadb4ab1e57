"""One of two processes fails: the job ends, with that process's error, and no process is left."""

import json
import time

import psutil
import pytest

import toolkit
from tests import tiny
from tests.faults.rank_processes import PATIENCE_S
from tests.launch import launched

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
    assert (folder / f"checkpoint-{step}" / "trainer_state.json").is_file()
    model, _ = toolkit.load(folder / f"checkpoint-{step}")
    assert model is not None


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


def test_one_of_them_is_told_to_stop(fail, tiny_base, tmp_path):
    """All stop at the same step, and write one checkpoint."""
    errors, folder, status, _ = fail("sigterm")
    assert len(errors) == 1
    assert errors[0].startswith("interrupted by SIGTERM after step 3 of 4")
    assert (status["status"], status["exit_code"]) == ("interrupted", 143)
    is_whole(folder, 3, tiny_base, tmp_path)
