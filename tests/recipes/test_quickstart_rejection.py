"""Two rounds of learning from its own right answers beat SFT on the quickstart's exam."""

import json
from pathlib import Path

import pytest

import toolkit

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_rounds_beat_sft(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = toolkit.run("recipes/quickstart_rejection.yaml", output_dir=str(tmp_path / "run"))
    rounds = result.manifest["rejection"]["rounds"]
    assert [each["round"] for each in rounds] == [0, 1, 2]
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    (found,) = [
        each for each in report["comparisons"]
        if (each["task"], each["a"], each["b"]) == ("counting", "sft", "rejection")
    ]  # fmt: skip
    assert found["p"] < 0.05
    assert found["b_only"] > found["a_only"]
