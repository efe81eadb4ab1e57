"""The benchmark on a CPU, at a size that takes seconds, in this process."""

import json

import pytest
from datasets import Dataset
from rich.console import Console
from transformers import AutoTokenizer

import toolkit
from tests.benchmarks import bare, cpu, cpu_rows, cpu_step
from toolkit.data.sequences import IGNORED

TINY = cpu_rows.SHAPES["tiny"]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def in_this_process(monkeypatch):
    """A process takes ten seconds to import what it needs."""

    def ask(*words, folder):
        return json.loads(json.dumps(cpu_step.find(str(folder), *words)))

    monkeypatch.setattr(cpu, "ask", ask)


def cells(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def test_both_train_the_same_and_are_measured(in_this_process, tmp_path):
    bench = cpu.measure("tiny", ["sft"], ["trl", "ours"], rounds=1, steps=3)
    (theirs,), (own,) = (bench.seen("sft", stack, "loss") for stack in ("trl", "ours"))
    assert own == pytest.approx(theirs, abs=0.01)
    assert all(number > 0 for stack in ("trl", "ours") for number in bench.seen("sft", stack))
    assert bench.gain("sft", "ours", "trl") == pytest.approx(
        bench.seen("sft", "trl")[0] / bench.seen("sft", "ours")[0]
    )
    assert 0 < bench.share("ours") < 1
    with Console(width=150, record=True) as console:
        cpu.show(bench, console)
    assert "of bf16 peak" in console.export_text()

    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nbefore\n")
    cpu.keep(bench, page)
    first = page.read_text() + "\nafter\n"
    page.write_text(first)
    cpu.keep(bench, page)
    assert page.read_text() == first  # in its place, and not once more
    header, *rows = cells(first)
    assert header == list(cpu.HEADER)
    assert [row[:2] for row in rows] == [["sft", "trl"], ["sft", "ours"]]
    assert "trl 1.16" in first
    assert "one thread" in first


def test_ppo_stands_beside_our_own_grpo():
    assert cpu.jobs(["sft", "ppo"], ["trl", "ours"]) == [
        ("sft", "trl"), ("sft", "ours"), ("ppo", "ours"), ("grpo", "ours"),
    ]  # fmt: skip
    assert cpu.jobs(["grpo", "ppo"], ["ours"]) == [("grpo", "ours"), ("ppo", "ours")]


@pytest.mark.parametrize(("name", "real"), [("22M", 0.44), ("135M", 0.60)])
def test_the_shares_of_the_rows(name, real):
    shape = cpu_rows.SHAPES[name]
    known = cpu_rows.words()
    rows = cpu_rows.rows_of("sft", shape, 3, known)
    assert rows == cpu_rows.rows_of("sft", shape, 3, known)
    tokens = cpu_rows.tokens_of(rows, shape.batch)
    assert tokens == cpu_rows.tokens_of(rows[: shape.batch], shape.batch)  # of every step
    assert tokens.real / tokens.padded == pytest.approx(real, abs=0.01)
    assert tokens.labelled / tokens.real == pytest.approx(795 / 1696, abs=0.03)


def test_the_weights_and_the_work_of_22m():
    """Against numbers worked out by hand for eight layers of 512."""
    shape = cpu_rows.SHAPES["22M"]
    assert shape.body == 22_020_096
    assert shape.lora() == 1_146_880
    tokens = cpu_rows.Tokens(real=1696, padded=3824, labelled=795, squares=540_000)
    assert cpu_rows.useful(shape, tokens) / 1e9 == pytest.approx(227.7, abs=0.2)


def test_a_word_is_a_token_and_packs_hold_the_rows_of_their_step(tmp_path):
    rows = cpu_rows.write(tmp_path, TINY, ["sft"], 3)["sft"]
    words = AutoTokenizer.from_pretrained(tmp_path / "base")
    packs, count = bare.packed(rows, words, TINY.batch, 64)
    assert len(packs) == count * 3
    prepared = toolkit.build(
        "sft", model_name_or_path=str(tmp_path / "base"), train_dataset=rows,
        output_dir=str(tmp_path / "run"),
    ).train_dataset  # fmt: skip
    assert isinstance(prepared, Dataset)
    for column in ("input_ids", "labels"):
        for step in range(3):
            own = prepared[step * TINY.batch : (step + 1) * TINY.batch][column]
            theirs = packs[step * count : (step + 1) * count]
            cut = [
                ids[start : start + length]
                for ids, lengths in zip(theirs[column], theirs["seq_lengths"], strict=True)
                for start, length in zip(_starts(lengths), lengths, strict=True)
            ]
            assert sorted(cut) == sorted(own)
    assert any(IGNORED in labels for labels in packs["labels"])


def _starts(lengths):
    return [sum(lengths[:at]) for at in range(len(lengths))]


@pytest.mark.slow
def test_every_stage_and_stack_in_processes_of_their_own(capsys):
    cpu.main(["--shape", "tiny", "--rounds", "1", "--steps", "2"])
    said = capsys.readouterr().out
    assert said.count("ours-bf16-base") == len(cpu.STAGES)
    assert said.count("trl-best") == len(cpu.STAGES)  # of which PPO has none, and the header one
