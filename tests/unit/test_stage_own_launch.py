"""Stages that would change one another's process are launches of their own."""

import json
import subprocess

import pytest

import toolkit
from tests import tiny
from tests.launch import launched
from toolkit.errors import Interrupted, RecipeError, TrainingError
from toolkit.recipe import load_recipe, recipe_from_keywords
from toolkit.stages import own_launch

TWO = """
model_name_or_path: {base}
dataset_name: {rows}
output_dir: {out}
max_steps: 1
lora_r: 4
per_device_train_batch_size: 4
stages:
  - {{stage: sft, name: first, learning_rate: 1e-2{first}}}
  - {{stage: sft, name: second, start_from: first, learning_rate: 1e-2{second}}}
"""


@pytest.fixture
def two(tmp_path, tiny_base, chats):
    """A recipe of two stages that differ in a switch of the whole process."""

    def write(first="", second=""):
        path = tmp_path / "two.yaml"
        given = {"base": tiny_base, "rows": chats, "out": tmp_path / "run"}
        path.write_text(TWO.format(**given, first=first, second=second))
        return path

    return write


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("", "", None),
        (", bf16: true", "", None),
        (", full_determinism: true", ", full_determinism: true", None),
        (", full_determinism: true", "", "the stages differ in full_determinism"),
        ("", ", torch_compile: true", "the stages differ in torch_compile"),
        (", deepspeed: zero.json", "", "deepspeed of stage 'first' stays in force"),
    ],
)
def test_what_a_process_cannot_take_back(first, second, said, two):
    found = own_launch.reason(load_recipe(two(first, second)))
    assert (found is None) if said is None else found.startswith(said)


def test_deepspeed_of_the_launcher_stays_in_force(two, monkeypatch, tiny_base, chats):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert own_launch.reason(load_recipe(two())) == "DeepSpeed stays in force for the whole process"
    (alone,) = (load_recipe(two()).stages[:1],)
    recipe = load_recipe(two())
    assert own_launch.reason(type(recipe)(None, recipe.output_dir, alone, False)) is None


def test_each_launch_is_of_the_same_recipe(two, monkeypatch, capsys):
    started = []

    def run(command, check):
        started.append(command[1:])
        assert not command[4].endswith("recipe.yaml") or load_recipe(command[4]).stages
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(own_launch.subprocess, "run", run)
    path = two(", full_determinism: true")
    result = toolkit.run(path, overwrite=True)
    assert list(result.stages) == ["first", "second"]
    assert [words[-2:] for words in started] == [["--until", "first"], ["--until", "second"]]
    assert all(words[:3] == ["-m", "toolkit", "run"] for words in started)
    assert all("--overwrite" in words for words in started)
    assert "each stage is a launch of its own, because the stages differ" in capsys.readouterr().out
    started.clear()
    from toolkit import cli

    assert cli.main(["run", str(path), "--first.max_steps", "2"]) == 0
    assert started[0][2:] == ["run", str(path), "--first.max_steps", "2", "--until", "first"]


@pytest.mark.parametrize(
    ("code", "kind"), [(3, RecipeError), (5, TrainingError), (130, Interrupted), (-9, Interrupted)]
)
def test_what_ends_a_launch_ends_the_run(code, kind, two, monkeypatch):
    ended = lambda command, check: subprocess.CompletedProcess(command, code)  # noqa: E731
    monkeypatch.setattr(own_launch.subprocess, "run", ended)
    with pytest.raises(kind, match="stage 'first'"):
        toolkit.run(two(", full_determinism: true"))


def test_a_run_until_a_stage(two, tmp_path):
    result = toolkit.run(two(), until="first")
    assert list(result.stages) == ["first"]
    assert not (tmp_path / "run" / "second").exists()
    with pytest.raises(
        RecipeError, match="--until: no stage 'third'; the recipe has first, second"
    ):
        toolkit.run(two(), until="third")


def test_a_stage_that_trains_nothing_loads_whole_models(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    recipe = recipe_from_keywords
    exam = recipe("evaluate", model_name_or_path="x/y", tasks=[{"rows": [{}]}]).stages[0]
    sft = recipe("sft", model_name_or_path="x/y", dataset_name="x.jsonl").stages[0]
    environ = own_launch.os.environ
    with own_launch.whole_models(exam):
        assert "ACCELERATE_USE_FSDP" not in environ
    with own_launch.whole_models(sft):
        assert environ["ACCELERATE_USE_FSDP"] == "true"
    assert environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


@pytest.mark.slow
def test_two_real_launches(two, tmp_path):
    result = toolkit.run(two(", full_determinism: true"))
    assert [stage.metrics["steps"] for stage in result.stages.values()] == [1, 1]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_two_gloo_processes_run_one_stage_and_say_how_to_go_on(two, tmp_path):
    path = two(", full_determinism: true")
    done = launched("accelerate_configs/cpu.yaml", "toolkit", "run", path)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "stage 'first' is finished, and the stages differ in full_determinism" in said
    assert "start the same command again for the next stage" in said
    assert (tmp_path / "run" / "first" / "stage.json").is_file()
    assert not (tmp_path / "run" / "second" / "stage.json").exists()
    done = launched("accelerate_configs/cpu.yaml", "toolkit", "run", path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "run" / "second" / "stage.json").is_file()


@pytest.mark.slow
def test_two_gloo_processes_share_stages_of_another_precision(two, tmp_path):
    done = launched("accelerate_configs/cpu.yaml", "toolkit", "run", two(", bf16: true"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "second" / "stage.json").read_text())
    assert found["verification"]["verified"] == "fresh_load"


@pytest.mark.slow
def test_two_stages_and_an_exam_under_fsdp2(tmp_path):
    """The plugin is of the launcher, the same for all; the exam is of whole models."""
    from toolkit.models.chatml import prepare_tokenizer

    words = tiny.tokenizer()
    prepare_tokenizer(words, conversational=True)
    base = tiny.save_base(tmp_path / "base", vocab_size=len(words))
    words.save_pretrained(base)
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    exam = tiny.save_rows(
        tmp_path / "exam.jsonl", [{"question": f"{n}+1?", "answer": "2"} for n in range(4)]
    )
    path = tmp_path / "three.yaml"
    text = TWO.format(base=base, rows=rows, out=tmp_path / "run", first="", second="")
    text = text.replace(f"dataset_name: {rows}\n", "").replace(
        "stage: sft,", f"stage: sft, dataset_name: {rows},"
    )
    path.write_text(
        f"{text}  - {{stage: evaluate, name: exam, of: [base, second], num_generations: 1,\n"
        f"     max_completion_length: 4, tasks: [{{name: t, dataset_name: {exam}}}]}}\n"
    )
    done = launched(
        "accelerate_configs/fsdp2.yaml", "tests.equivalence.fsdp_processes", "none", "run", path
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "second" / "stage.json").read_text())
    assert found["verification"]["verified"] == "resident_base"
    # each of two processes has asked half of the questions, of the same model as one process asks
    report = tmp_path / "run" / "exam" / "completions-base.jsonl"
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    one = toolkit.evaluate(
        model_name_or_path=str(base), of=["base"], num_generations=1, max_completion_length=4,
        tasks=[{"name": "t", "dataset_name": str(exam)}], output_dir=str(tmp_path / "one"),
    )  # fmt: skip
    again = one.output_dir / "completions-base.jsonl"
    assert [line["text"] for line in lines] == [
        json.loads(x)["text"] for x in again.read_text().splitlines()
    ]
