"""An exam by two processes is the exam by one: the same completions, in the same file, byte by byte."""

import pytest

import toolkit
from tests import tiny
from tests.launch import two_processes

ROWS = [
    {"question": f"What is {'very ' * index}{index}?", "answer": f"{index}"} for index in range(9)
]
FILES = ("completions-base.jsonl", "report.json")


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
