"""An exam by two processes is the exam by one: the same completions, in the same file, byte by byte."""

import os
import subprocess
import sys

import pytest

import toolkit
from tests import tiny

TWO_PROCESSES = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
use_cpu: true
mixed_precision: 'no'
rdzv_backend: static
same_network: true
main_training_function: main
"""
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


def run_two(recipe, directory):
    """The recipe by two processes on the CPU, joined by gloo."""
    config = recipe.with_name("two.yaml")
    config.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["-m", "toolkit", "run", str(recipe), "--output_dir", str(directory)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_two_processes_are_one(recipe, tmp_path):
    one = toolkit.run(recipe, output_dir=tmp_path / "one").output_dir
    printed = run_two(recipe, tmp_path / "two")
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
    printed = run_two(recipe, two)
    assert "20 completions are there already, and kept" in printed
    assert not list(two.glob("*~*"))
    for name in FILES:
        assert (two / name).read_bytes() == (one / name).read_bytes()
