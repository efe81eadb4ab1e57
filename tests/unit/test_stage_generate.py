"""`toolkit generate`: a run answers, every answer is kept, and none is made twice."""

import json

import pytest

from tests import exams, tiny
from toolkit import cli
from toolkit.errors import RecipeError, UsageError
from toolkit.inference.sampling import TransformersEngine
from toolkit.stages import generate as module
from toolkit.stages.generate import generate

SHORT = ["--max_completion_length", "6", "--per_device_eval_batch_size", "2"]


@pytest.fixture
def rows(tmp_path):
    return str(tiny.save_rows(tmp_path / "rows.jsonl", [{"prompt": f"{n} is"} for n in range(5)]))


def test_a_file_is_answered_and_an_interrupted_one_goes_on(
    tiny_base, rows, tmp_path, monkeypatch, capsys
):
    given = {"dataset": rows, "output": str(tmp_path / "out.jsonl")}
    words = [*SHORT, "--num_generations", "2"]
    exams.interrupted(monkeypatch, lambda: generate(str(tiny_base), words, **given), after=4)
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write('{"torn')
    made = []
    complete = TransformersEngine._complete
    monkeypatch.setattr(
        TransformersEngine, "_complete",
        lambda self, prompts, sampling: made.extend(prompts) or complete(self, prompts, sampling),
    )  # fmt: skip
    lines = generate(str(tiny_base), words, **given)
    assert len(made) == 6
    printed = " ".join(capsys.readouterr().out.split())
    assert "4 completions are there already" in printed
    assert "1 lines were torn" in printed
    assert "10 completions" in printed
    assert lines == [json.loads(each) for each in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["question"], line["sample"]) for line in lines] == [
        (row, sample) for row in range(5) for sample in (0, 1)
    ]
    assert lines == generate(
        str(tiny_base), words, dataset=rows, output=str(tmp_path / "again.jsonl")
    )


def test_the_command_line_prints_what_is_answered(tiny_base, capsys):
    words = ["generate", str(tiny_base), "--prompt", "one", "--prompt", "two", *SHORT]
    assert cli.main([*words, "--temperature", "0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    texts = [
        line["text"]
        for line in generate(str(tiny_base), [*SHORT, "--temperature", "0"], prompts=["one", "two"])
    ]
    assert "\n".join(printed).endswith("\n".join(texts))


def test_the_last_stage_that_writes_answers(tmp_path, tiny_base):
    run = tmp_path / "run"
    for name, stage in (("sft", "sft"), ("reward", "reward"), ("exam", "evaluate")):
        (run / name).mkdir(parents=True)
        (run / name / "stage.json").write_text(json.dumps({"stage": stage}))
        if name != "exam":
            (run / name / "adapter_config.json").write_text("{}")
    (run / "recipe.yaml").write_text("stages: [{name: sft}, {name: reward}, {name: exam}]\n")
    assert module.writer(str(run), None) == str(run / "sft")
    assert module.writer(str(run), "reward") == str(run / "reward")
    assert module.writer(str(tiny_base), None) == str(tiny_base)
    with pytest.raises(RecipeError, match="a stage that answers"):
        module.writer(str(run / "exam"), None)


def test_what_is_wrong_is_told_before_a_model_is_loaded(tiny_base, rows, tmp_path):
    with pytest.raises(UsageError, match="one of the two"):
        generate(str(tiny_base))
    with pytest.raises(UsageError, match="needs --output"):
        generate(str(tiny_base), dataset=rows)
    with pytest.raises(UsageError, match="transformers or vllm"):
        generate(str(tiny_base), prompts=["a"], engine="other")
    with pytest.raises(RecipeError, match="temperatur"):
        generate(str(tiny_base), ["--temperatur", "1"], prompts=["a"])
    with pytest.raises(RecipeError, match="vLLM is not installed"):
        generate(str(tiny_base), SHORT, prompts=["a"], engine="vllm")
