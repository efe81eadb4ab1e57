"""A reward fails in one of two processes: both skip, or both end; neither waits for the other."""

import json
import time

import pytest

from tests.faults.reward_processes import EACH, PATIENCE_S, STEPS
from tests.launch import launched


def rewarded(kind, base, folder):
    return launched(
        "accelerate_configs/cpu.yaml", "tests.faults.reward_processes", kind, base, folder
    )


def test_it_is_skipped(tiny_base, tmp_path):
    done = rewarded("skipped", tiny_base, tmp_path / "run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads((tmp_path / "run" / "stage.json").read_text())["rewards"]
    everything = 2 * EACH * STEPS
    assert counts["judge"] == {"scored": everything - EACH, "unscored": 0, "failed": EACH}
    assert counts["later"] == {"scored": everything, "unscored": 0, "failed": 0}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert [line["rewards/judge/failed"] for line in steps] == [0, 0.5, 0, 0]
    assert [line["judged"] for line in steps] == [1.0] * STEPS


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "words"), [
    ("stops", "reward judge raised ValueError: no answer in this process"),
    ("too often", "failed for 4 of 4 completions in its last 2 calls"),
])  # fmt: skip
def test_it_ends_both(kind, words, tiny_base, tmp_path):
    began = time.monotonic()
    done = rewarded(kind, tiny_base, tmp_path / "run")
    assert done.returncode != 0
    assert any("[process 1] error: " in line and words in line for line in done.stderr.splitlines())
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", 5)
    assert "reward judge raised ValueError" in status["error"]["message"]
    assert not (tmp_path / "run" / "stage.json").exists()
    # the start, and the launcher, of a busy machine besides
    assert time.monotonic() - began < PATIENCE_S + 600
