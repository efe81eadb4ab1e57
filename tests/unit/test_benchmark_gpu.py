"""The benchmark for a GPU, at a size that any machine runs."""

import pytest

from tests.benchmarks import gpu
from toolkit.models.load import load_tokenizer

SMALL = [
    "--shape",
    "tiny",
    "--steps",
    "1",
    "--rounds",
    "1",
    "--prompt",
    "8",
    "--completion",
    "4",
    "--batch",
    "2",
]


def cells(line):
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def check(lines):
    for line in lines:
        found = cells(line)
        assert len(found) == len(cells(gpu.HEADER))
        assert float(found[4].replace(",", "")) > 0
        assert float(found[7]) > 0
        assert float(found[8]) > 0


def test_a_letter_is_a_token_once_the_base_is_loaded(tmp_path):
    """transformers takes another tokenizer by the kind of the model, which must read the same."""
    words = load_tokenizer(gpu.save_base("tiny", tmp_path))
    rows = gpu.rows_of("sft", gpu.Size(prompt=8, completion=4, batch=2, steps=1, rounds=1))
    for row in rows:
        for message in [*row["prompt"], *row["completion"]]:
            ids = words(message["content"]).input_ids
            assert len(ids) == len(message["content"]) > 1
            assert words.decode(ids) == message["content"]


@pytest.mark.filterwarnings("ignore")
def test_rows_with_the_device_and_the_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "DOCS", tmp_path / "benchmarks.md")
    gpu.main(
        [*SMALL, "--stage", "sft", "--base", "qlora", "--change", "padding_free=false", "--write"]
    )
    text = (tmp_path / "benchmarks.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| Qwen2.5 tiny")]
    assert [cells(row)[3] for row in rows] == ["bare TRL", "ours", "ours, padding_free=False"]
    check(rows)
    assert "CPU" in text
    assert "trl 1.16" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_stage_and_base(capsys):
    gpu.main(SMALL)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| Qwen2.5")]
    assert len(rows) == 16
    assert {cells(row)[1] for row in rows} == set(gpu.STAGES)
    check(rows)
