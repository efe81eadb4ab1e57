import json
from pathlib import Path

import pytest
import yaml

from tests import tiny
from toolkit import cli, first_recipe
from toolkit.errors import DataError, UsageError
from toolkit.first_recipe import Choice, choose, look_at, recipe_text, write_first_recipe
from toolkit.recipe import load_recipe

CHAT = tiny.ROWS[0]
FORMS = {
    "messages": CHAT,
    "prompt_completion": {"prompt": "2+2=", "completion": "4"},
    "text": {"text": "once upon a time"},
    "alpaca": {"instruction": "add", "input": "2 2", "output": "4"},
}


def data(folder: Path, form: str = "messages", count: int = 24) -> Path:
    return tiny.save_rows(folder / f"{form}.jsonl", [FORMS[form]] * count)


def write(folder: Path, rows: Path, base: Path | None = None, name: str = "r.yaml") -> str:
    path = write_first_recipe(
        str(rows), output=str(folder / name), model_name_or_path=None if base is None else str(base)
    )
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
def test_a_first_recipe_runs_as_it_stands(
    tmp_path: Path, tiny_base: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    rows = data(tmp_path, form)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", str(rows), "--model_name_or_path", str(tiny_base)]) == 0
    recipe = f"sft_{form}.yaml"
    assert f"wrote {recipe}" in capsys.readouterr().out
    assert cli.main(["run", recipe, "--max_steps", "2"]) == 0
    saved = list(tmp_path.glob("runs/**/adapter_model.safetensors"))
    assert any(path.parent.name == f"sft_{form}" for path in saved), saved
    trained = (
        "every token" if form == "text" else "the completion" if "_" in form else "the assistant's"
    )
    assert trained in capsys.readouterr().out


def test_what_it_says_of_messages(tmp_path: Path, tiny_base: Path):
    text = write(tmp_path, data(tmp_path), tiny_base)
    # <|im_start|>user⏎Question 0: what is this? <|im_end|>⏎<|im_start|>assistant⏎Answer 0.<|im_end|>⏎
    tokens = 56
    assert "24 rows of messages; the assistant's turns are trained." in text
    assert f"median {tokens}, 99 % within {tokens}, longest {tokens}." in text
    assert f"# Written for: {choose().device}." in text
    keys = yaml.safe_load(text)
    assert keys["max_length"] == 64
    assert keys["test_split_size"] == 1
    assert keys["model_name_or_path"] == str(tiny_base)
    assert "eos_token" not in keys
    assert "no row is longer\n" in text


def test_what_it_says_of_other_rows(tmp_path: Path, tiny_base: Path):
    assert "rows of prompt and completion; the completion is trained" in write(
        tmp_path, data(tmp_path, "prompt_completion"), tiny_base, "a.yaml"
    )
    text = write(tmp_path, data(tmp_path, "text", 3), tiny_base, "b.yaml")
    assert "3 rows of text; every token is trained" in text
    assert "test_split_size" not in text  # too few to hold any out
    assert "instruction and input → user, output → assistant" in write(
        tmp_path, data(tmp_path, "alpaca"), tiny_base, "c.yaml"
    )


def test_rows_beyond_the_bases_positions_are_said_to_be_cut(tmp_path: Path, tiny_base: Path):
    long = {"text": "x" * 600}
    rows = tiny.save_rows(tmp_path / "long.jsonl", [long] * 3 + [{"text": "x"}] * 1)
    text = write(tmp_path, rows, tiny_base)
    assert yaml.safe_load(text)["max_length"] == 512
    assert "75.0% of the rows are longer and will be cut" in text


def test_without_the_base_here_lengths_are_estimated(tmp_path: Path):
    rows = tiny.save_rows(tmp_path / "a.jsonl", [{"text": "x" * 350}] * 4)
    text = write(tmp_path, rows)
    assert "(estimated, 3.5 characters each): median 100, 99 % within 100, longest 100." in text
    assert "no row is longer, by this estimate" in text
    keys = yaml.safe_load(text)
    assert keys["model_name_or_path"] == choose().base
    assert keys["max_length"] == 128  # a tenth more than the longest, in steps of 64


DEVICES = [
    Choice("1 × H100, 80 GiB", "Qwen/Qwen3-4B-Base", False, 32768, 4096),
    Choice("1 × L4, 24 GiB", "Qwen/Qwen3-4B-Base", True, 8192, 2048),
    Choice("CPU", "HuggingFaceTB/SmolLM2-135M", False, 1024, 1024),
]


@pytest.mark.parametrize("choice", DEVICES, ids=lambda choice: choice.device)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 24, 700])
def test_every_device_gets_a_recipe_that_is_right(
    tmp_path: Path, choice: Choice, form: str, count: int
):
    rows = str(data(tmp_path, form, count))
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text(rows, look_at(rows, choice.base), choice, None), encoding="utf-8")
    (stage,) = load_recipe(path).stages
    assert stage["model_name_or_path"] == choice.base
    assert stage["load_in_4bit"] is choice.in_4bit
    assert (stage["eos_token"] == "<|im_end|>") == (
        "Qwen" in choice.base and form in ("messages", "alpaca")
    )
    assert stage["global_batch_size"] % stage["per_device_train_batch_size"] == 0
    assert stage["global_batch_size"] <= max(1, count / 16)
    assert choice.device in path.read_text(encoding="utf-8")


def test_a_recipe_is_never_overwritten(tmp_path: Path, tiny_base: Path, capsys):
    rows = data(tmp_path)
    (tmp_path / "r.yaml").write_text("mine")
    with pytest.raises(
        UsageError, match=r"r\.yaml is there already; name another file with --output"
    ):
        write(tmp_path, rows, tiny_base)
    assert (tmp_path / "r.yaml").read_text() == "mine"
    with pytest.raises(UsageError, match="cannot be written"):
        write(tmp_path, rows, tiny_base, "r.yaml/below.yaml")
    assert cli.main(["init", str(tmp_path / "nothing.jsonl")]) == 4
    assert "no file or folder" in capsys.readouterr().err


def test_wrong_rows_are_refused(tmp_path: Path, tiny_base: Path):
    bad = tiny.save_rows(tmp_path / "b.jsonl", [CHAT, {"messages": []}])
    with pytest.raises(DataError, match="row 2, column 'messages': the list of messages is empty"):
        write(tmp_path, bad, tiny_base, "bad.yaml")
    assert not (tmp_path / "bad.yaml").exists()


@pytest.mark.parametrize(
    "name", ["yes.jsonl", "a: b #.jsonl", "1e3.jsonl", "ü'\".jsonl", "no", "null", "true"]
)
def test_names_that_yaml_would_read_otherwise(
    tmp_path: Path, tiny_base: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    if not path.suffix:
        path.mkdir()
        path = path / "train.jsonl"
    tiny.save_rows(path, [CHAT])
    write(tmp_path, Path(name), tiny_base)
    assert load_recipe(tmp_path / "r.yaml").stages[0]["dataset_name"] == name


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
ASKED = CHAT["messages"][0]
CALLING = {
    "tool_calls": [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    "reasoning": [ASKED, {**CHAT["messages"][1], "reasoning_content": "why"}],
    "a result": [*CHAT["messages"], {"role": "tool", "content": "4"}, CHAT["messages"][1]],
}


@pytest.mark.parametrize("calling", CALLING)
def test_rows_that_need_a_template_get_a_base_that_has_it(tmp_path: Path, calling: str):
    rows = [CHAT] * 3 + [{"messages": CALLING[calling]}]
    path = str(tiny.save_rows(tmp_path / "a.jsonl", rows))
    gpu, _, cpu = DEVICES
    for choice, base in ((gpu, gpu.base), (cpu, "Qwen/Qwen3-0.6B")):
        keys = yaml.safe_load(recipe_text(path, look_at(path, choice.base), choice, None))
        assert keys["model_name_or_path"] == base
    look = look_at(path, "some/model")
    assert "its chat template must render " in recipe_text(path, look, cpu, "some/model")


def test_tools_without_calls_and_words_about_them(tmp_path: Path):
    cpu = DEVICES[2]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    words = '"tool_calls": [{}], "role": "tool", "thinking": "x"'
    empty = {**CHAT["messages"][1], "reasoning": "", "tool_calls": []}
    about = [{"role": "user", "content": words}, empty]
    for row, base in (
        ({**CHAT, "tools": [tool]}, "Qwen/Qwen3-0.6B"),
        ({"messages": about}, cpu.base),
        ({"text": '"tool_calls": [{'}, cpu.base),
    ):
        path = str(tiny.save_rows(tmp_path / "b.jsonl", [row]))
        keys = yaml.safe_load(recipe_text(path, look_at(path, cpu.base), cpu, None))
        assert keys["model_name_or_path"] == base


@pytest.mark.parametrize(("calling", "what"), [("tool_calls", "tool calls"), ("reasoning",) * 2])
def test_a_base_here_that_cannot_render_the_rows_is_refused(
    tmp_path: Path, tiny_base: Path, calling: str, what: str
):
    rows = tiny.save_rows(tmp_path / "a.jsonl", [CHAT, {"messages": CALLING[calling]}])
    with pytest.raises(UsageError, match=rf"has {what}, and .* no chat template.*Qwen/Qwen3-0\.6B"):
        write(tmp_path, rows, tiny_base)
    assert not (tmp_path / "r.yaml").exists()
    with_results = tiny.save_rows(tmp_path / "b.jsonl", [{"messages": CALLING["a result"]}])
    assert yaml.safe_load(write(tmp_path, with_results, tiny_base))["max_length"] > 0


def test_names_cannot_write_keys(tmp_path: Path, tiny_base: Path):
    hostile = "x\noutput_dir: elsewhere\n"
    rows = [{**CHAT, hostile: 1}]
    path = tmp_path / f"{hostile.replace('/', '')}.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    text = write(tmp_path, path, tiny_base)
    assert yaml.safe_load(text)["output_dir"].startswith("runs/sft_x")
    assert yaml.safe_load(text)["dataset_name"] == str(path)
    assert first_recipe._line("a", "b\nc: d", "") == 'a: "b\\nc: d"\n'
