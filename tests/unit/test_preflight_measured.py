"""The estimate of memory beside what a stage takes: one line of the table in docs/preflight.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["3", "8"])  # logits and weights; blocks that fragment the heap
def test_the_estimate_is_within_15_percent_of_the_peak(number):
    done = subprocess.run(
        [sys.executable, "docs/memory_check.py", "--only", number],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(next(line for line in done.stderr.splitlines() if line.startswith('{"')))
    assert abs(found["peak"] / found["measured"] - 1) < 0.15, found
