"""The exam: what is examined, what is asked, and that nothing said is lost or asked twice."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import toolkit
from tests import tiny
from tests.exams import ROWS, examine, interrupted, lines_of, settings, train_sft, watched
from toolkit.data.chat import training_sequences
from toolkit.errors import RecipeError
from toolkit.evaluation.tasks import load_tasks
from toolkit.models.load import load_tokenizer
from toolkit.recipe import recipe_from_keywords
from toolkit.stages import evaluate, exam_progress, examined, requests
from toolkit.stages.completions import file_name

SHOTS = [{"question": f"What is {index}0?", "answer": f"{index}0"} for index in range(3)]


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory):
    return train_sft(tiny_base, tmp_path_factory.mktemp("sft"))


@pytest.fixture
def engines(monkeypatch):
    return watched(monkeypatch)


def test_every_completion_is_kept_and_reported(tiny_base, adapter, tmp_path, capsys):
    result = examine(tiny_base, tmp_path / "exam", of=["base", str(adapter)])
    report = json.loads((tmp_path / "exam" / "report.json").read_text())
    assert [row["stage"] for row in report["exam"]] == ["base", str(adapter)]
    (task,) = report["tasks"]
    assert task.pop("digest")
    assert task == {"name": "numbers", "n": 7, "checker": "number", "where": "numbers"}
    assert report["sampling"]["max_completion_length"] == 8
    assert set(result.metrics) == {
        f"{name}/numbers/{kind}" for name in ("base", adapter) for kind in ("accuracy", "greedy")
    }
    for name in ("base", str(adapter)):
        lines = lines_of(tmp_path / "exam", name)
        keys = [(line["question"], line["sample"]) for line in lines]
        assert keys == [(question, sample) for question in range(7) for sample in (None, 0, 1)]
        assert lines[3]["asked"] == "What is 1?"
        assert lines[3]["expected"] == "1"
        assert all(1 <= line["tokens"] <= 8 for line in lines)
        assert {line["seed"] is None for line in lines if line["sample"] is None} == {True}
    printed = capsys.readouterr().out
    assert "base: 21 completions" in printed
    assert all(len(line) <= 80 or str(tmp_path) in line for line in printed.splitlines())
    names = {path.name for path in (tmp_path / "exam").iterdir()}
    assert names == {
        "completions-base.jsonl", file_name(str(adapter)), "report.json", "stage.json",
        "recipe.yaml", "status.json", "plots",
    }  # fmt: skip


def test_an_interrupted_exam_goes_on(tiny_base, tmp_path, monkeypatch, capsys):
    examine(tiny_base, tmp_path / "whole")
    interrupted(monkeypatch, lambda: examine(tiny_base, tmp_path / "exam"), after=9)
    file = tmp_path / "exam" / "completions-base.jsonl"
    kept = file.read_text().splitlines()
    assert len(kept) == 9
    other = json.dumps(json.loads(kept[0]) | {"digest": "of another exam"})
    marked = json.dumps(json.loads(kept[1]) | {"mark": "not asked again"})
    file.write_text("\n".join([kept[0], marked, *kept[2:], other, kept[0][:40]]))
    made = []
    monkeypatch.setattr(evaluate, "line_of", spy_on(evaluate.line_of, made))
    capsys.readouterr()
    examine(tiny_base, tmp_path / "exam")
    printed = capsys.readouterr().out
    assert "9 completions are there already, and kept" in printed
    assert "2 lines were torn or of another exam: removed" in " ".join(printed.split())
    assert len(made) == 21 - 9
    lines = lines_of(tmp_path / "exam")
    assert [line.pop("mark") for line in lines if "mark" in line] == ["not asked again"]
    assert lines == lines_of(tmp_path / "whole")
    whole, resumed = ((tmp_path / name / "report.json").read_text() for name in ("whole", "exam"))
    assert resumed == whole


def spy_on(function, results):
    def spy(*arguments):
        results.append(function(*arguments))
        return results[-1]

    return spy


def test_what_is_answered_needs_no_model(tiny_base, tmp_path, monkeypatch):
    result = examine(tiny_base, tmp_path / "exam")
    (tmp_path / "exam" / "started.json").write_text(json.dumps(result.manifest["inputs"]))
    (tmp_path / "exam" / "stage.json").unlink()
    monkeypatch.setattr(examined.Examined, "load_model", None)
    assert examine(tiny_base, tmp_path / "exam").metrics == result.metrics


def test_a_completion_of_other_weights_is_not_kept(tiny_base, tmp_path, monkeypatch):
    keys = {"model_name_or_path": None, "processing_class": tiny.tokenizer()}
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    interrupted(monkeypatch, lambda: examine(None, tmp_path / "exam", model=model, **keys), after=9)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    made = []
    monkeypatch.setattr(evaluate, "line_of", spy_on(evaluate.line_of, made))
    examine(None, tmp_path / "exam", model=model, **keys)
    assert len(made) == 21


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"max_completion_length": 9}, {"temperature": 0.9}, {"top_p": 0.9},
        {"top_k": 9}, {"dtype": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_completion_depends_on_is_in_its_digest(change, tiny_base, tmp_path):
    def digests(**keys):
        recipe = recipe_from_keywords("evaluate", **settings(tiny_base, tmp_path, **keys)).stages[0]
        (one,) = examined.examined_models(recipe, {})
        tasks = load_tasks(recipe["tasks"], where="tasks")
        return {request.digest for request in requests.requests(one, tasks, recipe)}

    assert digests() == digests(per_device_eval_batch_size=2)
    assert digests() != digests(**change)


def test_the_order_of_questions_and_batches_changes_nothing(tiny_base, tmp_path):
    other = {"name": "more", "rows": SHOTS}
    numbers = {"name": "numbers", "rows": ROWS}
    examine(tiny_base, tmp_path / "a", tasks=[numbers, other])
    examine(tiny_base, tmp_path / "b", tasks=[other, numbers], per_device_eval_batch_size=1)
    one, two = (
        {
            (line["task"], line["question"], line["sample"]): line
            for line in lines_of(tmp_path / run)
        }
        for run in ("a", "b")
    )
    assert one == two
    assert len({line["seed"] for line in one.values()}) == 2 * 10 + 1


def test_temperature_zero_asks_once(tiny_base, tmp_path):
    result = examine(tiny_base, tmp_path / "exam", temperature=0.0)
    assert [line["sample"] for line in lines_of(tmp_path / "exam")] == [None] * 7
    assert result.metrics["base/numbers/greedy"] == 0


def test_the_base_is_asked_with_and_without_examples(tiny_base, adapter, tmp_path, engines):
    shown = tiny.save_rows(tmp_path / "shown.jsonl", SHOTS)
    task = {"name": "numbers", "rows": ROWS[:2], "few_shot": str(shown)}
    keys = {"tasks": [task], "of": ["base", str(adapter)], "num_few_shot": 2}
    result = examine(tiny_base, tmp_path / "exam", **keys)
    assert set(result.metrics) >= {
        "base/numbers/greedy", "base few-shot/numbers/greedy", f"{adapter}/numbers/greedy",
    }  # fmt: skip
    assert f"{adapter} few-shot/numbers/greedy" not in result.metrics
    words = tiny.tokenizer()
    zero, few = (words.decode(engines[0][2][index].input_ids) for index in (0, 2))
    assert "What is 0?" in zero
    assert "What is 00?" not in zero
    assert few.endswith(zero[-20:])
    assert ("What is 00?" in few, "What is 10?" in few, "What is 20?" in few) == (True, True, False)


def test_a_chat_model_is_asked_as_it_was_trained(tiny_base, adapter, tmp_path, engines):
    examine(tiny_base, tmp_path / "exam", of=[str(adapter)])
    words = load_tokenizer(adapter)
    conversation = [
        {"role": "user", "content": ROWS[2]["question"]},
        {"role": "assistant", "content": "two"},
    ]
    ((sequence,),) = [training_sequences(words, conversation)]
    trained = sum(label != -100 for label in sequence["labels"])
    start = len(sequence["labels"]) - next(
        i for i, label in enumerate(reversed(sequence["labels"])) if label != -100
    )
    assert engines[0][2][2].input_ids == sequence["input_ids"][: start - trained]


def test_a_document_keeps_its_start_and_has_no_end(tiny_base):
    from tokenizers.processors import TemplateProcessing

    words = tiny.tokenizer()
    words.add_special_tokens({"bos_token": "<s>"})
    bare = words("Question: ", add_special_tokens=False).input_ids
    assert requests.document_ids(words, "Question: ") == bare
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=[("<s>", words.bos_token_id), ("<|endoftext|>", 0)]
    )  # fmt: skip
    assert requests.document_ids(words, "Question: ") == [words.bos_token_id, *bare]


def test_by_default_the_base_and_what_was_trained_from_it(tiny_base, adapter, tmp_path):
    rows = tiny.save_rows(tmp_path / "exam.jsonl", ROWS)
    recipe = tmp_path / "pipeline.yaml"
    recipe.write_text(
        f"""
model_name_or_path: {tiny_base}
output_dir: {tmp_path / "run"}
tasks: [{{name: numbers, dataset_name: {rows}}}]
max_completion_length: 8
num_generations: 1
stages:
  - {{stage: sft, train_dataset: x, lora_r: 4, max_steps: 1, dataset_name: {tmp_path}/chats.jsonl}}
  - {{stage: evaluate, name: first}}
  - {{stage: evaluate, name: second}}
""".replace("train_dataset: x, ", "")
    )
    tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)
    result = toolkit.run(recipe)
    for name in ("first", "second"):
        assert list(result.metrics[name]) == [
            "base/numbers/accuracy", "base/numbers/greedy",
            "sft/numbers/accuracy", "sft/numbers/greedy",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bsae", "'bsae', which is no earlier stage"),
        ("./nowhere", "no such folder"),
        ("{tmp}", "neither; name the folder that holds the weights"),
    ],
)
def test_what_is_no_model_is_refused_before_any_is_loaded(
    name, message, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.setattr(examined, "load_base", None)
    with pytest.raises(RecipeError, match=message):
        examine(tiny_base, tmp_path / "exam", of=["base", name.format(tmp=tmp_path)])


def test_the_models_keys_reach_the_base_below_an_adapter(tiny_base, adapter, tmp_path, engines):
    examine(tiny_base, tmp_path / "exam", of=["base", str(adapter)], dtype="bfloat16")
    assert [dtype for _, dtype, _ in engines] == [torch.bfloat16] * 4


def test_four_bit_reaches_the_base_below_an_adapter(tmp_path, monkeypatch):
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    toolkit.sft(
        model_name_or_path=str(base), train_dataset=tiny.ROWS, output_dir=str(tmp_path / "sft"),
        lora_r=4, max_steps=1, load_in_4bit=True,
    )  # fmt: skip
    quantized = []
    load = examined.Examined.load_model

    def spy(self):
        model = load(self)
        quantized.append(getattr(model, "is_loaded_in_4bit", False))
        return model

    monkeypatch.setattr(examined.Examined, "load_model", spy)
    examine(base, tmp_path / "exam", of=["base", str(tmp_path / "sft")], load_in_4bit=True)
    assert quantized == [True, True]


def test_one_model_is_in_memory_at_a_time(tiny_base, adapter, tmp_path, engines, monkeypatch):
    alive = []
    load = examined.Examined.load_model

    def spy(self):
        alive.append([model() is not None for model, _, _ in engines])
        return load(self)

    monkeypatch.setattr(examined.Examined, "load_model", spy)
    examine(tiny_base, tmp_path / "exam", of=["base", str(adapter)])
    assert alive == [[], [False, False]]


def test_a_pipeline_compares_a_stage_with_its_parent(tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "exam.jsonl", ROWS)
    tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)
    recipe = tmp_path / "pipeline.yaml"
    recipe.write_text(f"""
model_name_or_path: {tiny_base}
output_dir: {tmp_path / "run"}
dataset_name: {tmp_path / "chats.jsonl"}
max_steps: 1
lora_r: 4
stages:
  - {{stage: sft, name: first}}
  - {{stage: sft, name: second, start_from: first}}
  - {{stage: sft, name: third, start_from: first}}
  - stage: evaluate
    tasks: [{{name: numbers, dataset_name: {rows}}}]
    max_completion_length: 4
    num_generations: 1
""")
    toolkit.run(recipe)
    report = json.loads((tmp_path / "run" / "evaluate" / "report.json").read_text())
    assert [(found["a"], found["b"]) for found in report["comparisons"]] == [
        ("base", "first"), ("first", "second"), ("base", "second"), ("first", "third"),
        ("base", "third"),
    ]  # fmt: skip


def test_python_objects_are_examined_in_place(tiny_base, tmp_path):
    named = examine(tiny_base, tmp_path / "named")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.train()
    given = examine(
        None, tmp_path / "given", model_name_or_path=None, model=model,
        processing_class=tiny.tokenizer(),
        tasks=[{"name": "numbers", "rows": Dataset.from_list(ROWS)}],
    )  # fmt: skip
    assert model.training
    assert given.metrics == named.metrics
    texts = [[line["text"] for line in lines_of(tmp_path / run)] for run in ("named", "given")]
    assert texts[0] == texts[1]


def test_python_objects_that_make_no_exam(tiny_base, tmp_path):
    with pytest.raises(RecipeError, match="takes no train_dataset"):
        examine(tiny_base, tmp_path / "exam", train_dataset=tiny.ROWS)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_attention_heads=1, **small))
    with pytest.raises(RecipeError, match="give processing_class"):
        examine(None, tmp_path / "other", model_name_or_path=None, model=model)


def test_a_prompt_without_room_names_its_row(tiny_base, tmp_path):
    rows = [*ROWS, {"question": "why? " * 120, "answer": "0"}]
    file = tiny.save_rows(tmp_path / "exam.jsonl", rows)
    with pytest.raises(RecipeError, match=r"exam\.jsonl, row 8: 6\d\d tokens of prompt"):
        examine(tiny_base, tmp_path / "exam", tasks=[{"name": "n", "dataset_name": str(file)}])


def test_a_log_file_gets_few_lines(monkeypatch, capsys):
    monkeypatch.setattr(exam_progress, "PLAIN_SECONDS", 0)
    with exam_progress.ExamProgress("base", 1000) as progress:
        for _ in range(1000):
            progress.advance(5)
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 20
    assert "base: 50/1,000 completions" in lines[0]
    assert "base: 1,000 completions in 0 s" in lines[-1]


def test_file_names_are_safe_and_differ():
    assert file_name("sft") == "completions-sft.jsonl"
    names = [file_name(model) for model in ("a/b", "a-b", "../a/b", "C:\\a b", "x/" * 200 + "y")]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzC0123456789-.") for name in names)
    assert all(len(name) < 110 and ".." not in name for name in names)
