"""Two processes do what one does, byte by byte: the completions of an exam, the ranks of answers."""

import json

import pytest

import toolkit
from tests import tiny
from tests.launch import two_processes

ROWS = [
    {"question": f"What is {'very ' * index}{index}?", "answer": f"{index}"} for index in range(9)
]
FILES = ("completions-base.jsonl", "report.json", "scores-repetition.jsonl")


@pytest.fixture
def recipe(tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "exam.jsonl", ROWS[2:])
    shown = tiny.save_rows(tmp_path / "shown.jsonl", ROWS[:2])
    path = tmp_path / "exam.yaml"
    path.write_text(f"""
stage: evaluate
model_name_or_path: {tiny_base}
tasks: [{{name: numbers, dataset_name: {rows}, few_shot: {shown}}}]
max_completion_length: 12
num_generations: 3
per_device_eval_batch_size: 4
reward_funcs: [repetition]
""")
    return path


def test_two_processes_are_one(recipe, tmp_path):
    one = toolkit.run(recipe, output_dir=tmp_path / "one").output_dir
    printed = two_processes("run", recipe, "--output_dir", tmp_path / "two")
    assert printed.count("━━ evaluate") == 1, "only the first process may print"
    # four of seven questions, four completions each, with and without examples
    assert "base: 32 completions in" in printed, "the questions must be divided"
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in one.iterdir()
    )
    for name in FILES:
        assert (tmp_path / "two" / name).read_bytes() == (one / name).read_bytes()


def test_two_processes_rank_as_one(tmp_path):
    base = tiny.save_base(tmp_path / "base")
    stops = list(range(0, 257, 5))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    rows = tiny.save_rows(tmp_path / "asked.jsonl", [{"prompt": f"{i}: once"} for i in range(5)])
    path = tmp_path / "rank.yaml"
    path.write_text(f"""
stage: rank
model_name_or_path: {base}
dataset_name: {rows}
max_completion_length: 8
num_generations: 5
reward_funcs: [{{name: length, target: 4}}]
""")
    one = toolkit.run(path, output_dir=tmp_path / "one").output_dir
    printed = two_processes("run", path, "--output_dir", tmp_path / "two")
    assert "base: 15 completions in" in printed, "the prompts must be divided"
    assert (one / "ranked.jsonl").read_text()
    for name in ("ranked.jsonl", "completions-base.jsonl", "scores-length.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (one / name).read_bytes()
    assert not list((tmp_path / "two").glob("*~*"))


def test_two_processes_go_on_where_three_stopped(recipe, tmp_path):
    """Parts of other processes count, whoever reads them; what is torn is made again."""
    one = toolkit.run(recipe, output_dir=tmp_path / "one").output_dir
    whole = (one / FILES[0]).read_text().splitlines(keepends=True)
    two = tmp_path / "two"
    two.mkdir()
    (two / FILES[0]).write_text("".join(whole[:20:3]))
    (two / "completions-base~1.jsonl").write_text("".join(whole[1:20:3]))
    (two / "completions-base~2.jsonl").write_text("".join(whole[2:20:3]) + whole[30][:50])
    printed = two_processes("run", recipe, "--output_dir", two)
    assert "20 completions are there already, and kept" in printed
    assert not list(two.glob("*~*"))
    for name in FILES:
        assert (two / name).read_bytes() == (one / name).read_bytes()
