"""What counts as an input: whatever changes what a stage gives changes its inputs, and no more."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from tests import tiny
from toolkit.artifacts import model_files
from toolkit.artifacts.inputs import inputs_of, model_identity, object_identity
from toolkit.artifacts.manifest import MANIFEST, changed_inputs, sha256_of, write_json
from toolkit.errors import RecipeError
from toolkit.recipe import keys_of, recipe_from_keywords


def given(stage="sft", **keys):
    recipe = recipe_from_keywords(stage, model_name_or_path="somebody/base", **keys)
    return inputs_of(recipe.stages[0], {}, {})


@pytest.mark.parametrize("change", ["rows", "mixture", "template"])
def test_a_file_that_changed_is_another_input(change, tmp_path):
    file = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    keys = {
        "rows": {"dataset_name": str(file)},
        "mixture": {"datasets": [{"path": "json", "data_files": [str(file)]}]},
        "template": {"dataset_name": "somebody/rows", "chat_template_path": str(template)},
    }[change]
    before = given(**keys)
    assert given(**keys) == before
    if change == "template":
        template.write_text("{{ messages[0] }}")
    else:
        tiny.save_rows(file, tiny.ROWS[:-1])
    assert given(**keys) != before


def test_what_is_shown_or_where_it_goes_is_no_input(tmp_path):
    keys = {"dataset_name": "somebody/rows", "learning_rate": 1e-4}
    before = given(**keys)
    assert given(**keys, logging_steps=3, save_steps=7, output_dir=str(tmp_path)) == before
    assert given(**keys | {"learning_rate": 2e-4}) != before


def test_rows_given_to_a_task_count_by_their_content():
    def exam(answer):
        rows = Dataset.from_list([{"question": "1 + 1?", "answer": answer}])
        return given("evaluate", tasks=[{"name": "sums", "rows": rows}])

    assert exam("2") == exam("2")
    assert exam("2") != exam("3")


def test_a_model_and_a_tokenizer_count_by_what_they_hold(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    words = tiny.tokenizer()
    before = object_identity(model), object_identity(words)
    assert (object_identity(model), object_identity(words)) == before
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1e-3
    words.chat_template = "{{ messages }}"
    assert object_identity(model) != before[0]
    assert object_identity(words) != before[1]


def test_an_exam_depends_on_every_earlier_stage_unless_it_names_them(tmp_path):
    def exam(**keys):
        recipe = recipe_from_keywords(
            "evaluate",
            model_name_or_path="somebody/base",
            tasks=[{"name": "a", "rows": []}],
            **keys,
        )
        return inputs_of(recipe.stages[0], {"sft": tmp_path, "second": tmp_path}, {})

    assert {"from sft", "from second"} <= exam().keys()
    assert "from sft" not in exam(of=["base"])


class Stop(TrainerCallback):
    def __init__(self, at):
        self.at = at
        self.seen = 0


class Other(TrainerCallback):
    pass


def test_callbacks_count_by_their_class_and_settings():
    one = Stop(3)
    before = object_identity([one])
    assert object_identity((Stop(3),)) == before
    others = [[], [Stop(4)], [Other()], [Stop], [one, Other()], [EarlyStoppingCallback(3)]]
    found = {before, *(object_identity(callbacks) for callbacks in others)}
    assert len(found) == 1 + len(others)
    assert object_identity([EarlyStoppingCallback(2)]) != object_identity(
        [EarlyStoppingCallback(3)]
    )
    one.seen += 1
    assert object_identity([one]) == before


def test_streamed_rows_are_no_model():
    streamed = Dataset.from_list(tiny.ROWS).to_iterable_dataset()
    assert object_identity(streamed) == "IterableDataset"


def test_an_adapter_is_continued_over_the_weights_it_was_trained_over(tmp_path):
    base = tiny.save_base(tmp_path / "base")
    keys = {"model_name_or_path": str(base), "dataset_name": "somebody/rows"}

    def inputs(**more):
        return inputs_of(recipe_from_keywords("sft", **keys, **more).stages[0], {}, {})

    before, adapter = inputs(), tmp_path / "adapter"
    adapter.mkdir()
    inputs(start_from=str(adapter))  # no manifest: nothing is known
    write_json(adapter / MANIFEST, {"inputs": before, "outputs": {}})
    (base / "generation_config.json").write_text("{}")
    changed = changed_inputs(before, inputs())
    assert changed == [f"base {base}: its content changed"]
    inputs(start_from=str(adapter))  # what an adapter stands on is the weights alone
    tiny.save_base(base, seed=5)
    with pytest.raises(RecipeError, match=r"are not those that .* was trained over; put them back"):
        inputs(start_from=str(adapter))


@pytest.mark.parametrize("entry", ["json", "folder", "below", "recursive"])
def test_a_file_more_that_fits_a_pattern_is_another_input(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sk" / "data"
    folder.mkdir(parents=True)
    tiny.save_rows(folder / "a.jsonl", tiny.ROWS)
    datasets = [
        {
            "json": {"path": "json", "data_files": "sk/data/*.jsonl"},
            "folder": {"path": "json", "data_dir": "sk", "data_files": {"train": "data/*.jsonl"}},
            "below": {"path": "sk/data", "data_files": str(folder / "*.jsonl")},
            "recursive": {"path": "json", "data_files": ["sk/**/*.jsonl"]},
        }[entry]
    ]
    before = given(datasets=datasets)
    assert given(datasets=datasets) == before
    tiny.save_rows(folder / "b.jsonl", tiny.ROWS[:1])
    after = given(datasets=datasets)
    changed = changed_inputs(before, after)
    assert changed
    assert all(phrase.endswith("its content changed") for phrase in changed)
    tiny.save_rows(folder / "b.jsonl", tiny.ROWS[1:2])
    assert given(datasets=datasets) != after


def test_each_file_that_a_model_is_loaded_from_counts(tmp_path):
    base = tiny.save_base(tmp_path / "base")
    seen = [model_identity(str(base))]
    for name in (
        "config.json", "tokenizer.json", "chat_template.jinja", "vocab.json", "vocab.txt",
        "merges.txt", "tokenizer.model", "modeling_own.py", "added_tokens.json",
    ):  # fmt: skip
        (base / name).write_text("{}")
        seen.append(model_identity(str(base)))
    (base / "pytorch_model.bin").write_bytes(b"1")
    assert model_identity(str(base)) == seen[-1]  # safetensors are what is loaded
    (base / "model.safetensors").unlink()
    for content in (b"1", b"2"):
        (base / "pytorch_model.bin").write_bytes(content)
        seen.append(model_identity(str(base)))
    assert len(set(seen)) == len(seen)
    for record in ("stage.json", "report.json", "trainer_state.json", "log.jsonl", "README.md"):
        (base / record).write_text("{}")
    assert model_identity(str(base)) == seen[-1]


def test_a_parent_that_changed_under_its_manifest_is_noticed(tmp_path):
    write_json(tmp_path / MANIFEST, {"inputs": {}, "outputs": {"adapter_model.safetensors": {}}})
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    before = model_identity(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert model_identity(str(tmp_path)) != before


def test_a_change_in_the_middle_of_the_weights_is_noticed(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(5 << 20))
    before = model_identity(str(tmp_path))
    with file.open("r+b") as stream:
        stream.seek(5 << 19)
        stream.write(b"x")
    assert model_identity(str(tmp_path)) != before


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The files that were read, with every file large and old enough to be remembered."""
    found = []

    def reading(file):
        found.append(file.name)
        return sha256_of(file)

    monkeypatch.setattr(model_files, "sha256_of", reading)
    monkeypatch.setattr(model_files, "REMEMBERED_FROM", 0)
    monkeypatch.setattr(model_files, "SETTLED_NS", -1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def test_a_large_file_is_read_once_and_again_when_it_changed(tmp_path, read):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = model_files.file_digest(file)
    assert (model_files.file_digest(file), read) == (first, [file.name])
    (note,) = (tmp_path / "cache" / "toolkit" / "sha256").iterdir()
    assert json.loads(note.read_text())["sha256"] == first
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=times)  # its time of change remains
    assert model_files.file_digest(file) != first
    assert len(read) == 2
    note.write_text("{")
    model_files.file_digest(file)
    assert len(read) == 3


def test_what_was_just_written_or_cannot_be_noted_is_read_again(tmp_path, read, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    monkeypatch.setattr(model_files, "SETTLED_NS", 10**12)
    assert [model_files.file_digest(file) for _ in range(2)]
    monkeypatch.setattr(model_files, "SETTLED_NS", -1)
    (tmp_path / "cache").write_text("a file is in the way")
    assert [model_files.file_digest(file) for _ in range(2)]
    assert len(read) == 4


def test_the_cache_of_the_hub_names_weights_by_their_digest(tmp_path, read):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("model.safetensors", "a" * 64), ("config.json", "b" * 40)):
        (blobs / blob).write_text("{}")
        (snapshot / name).symlink_to(blobs / blob)
    assert model_files.file_digest(snapshot / "model.safetensors") == "a" * 64
    assert not read
    model_files.file_digest(snapshot / "config.json")
    assert read == ["b" * 40]  # a Git name, which is no SHA-256 of the content


def test_several_processes_note_one_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    code = (
        "import sys, pathlib; from toolkit.artifacts import model_files as m\n"
        "m.REMEMBERED_FROM, m.SETTLED_NS = 0, -1\n"
        "for _ in range(50):\n"
        "    for note in pathlib.Path(sys.argv[2]).glob('toolkit/sha256/*.json'):\n"
        "        note.unlink(missing_ok=True)\n"
        "    print(m.file_digest(pathlib.Path(sys.argv[1])))\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file), str(tmp_path / "cache")], text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}, stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    said = [process.communicate()[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert {digest for lines in said for digest in lines} == {model_files.sha256_of(file)}
    (note,) = (tmp_path / "cache" / "toolkit" / "sha256").iterdir()
    assert json.loads(note.read_text())["sha256"] == said[0][0]


@pytest.mark.parametrize("stage", ["sft", "evaluate"])
def test_a_default_that_is_written_is_no_change(stage):
    needed = {"model_name_or_path": "somebody/base"}
    needed |= {"dataset_name": "a/b"} if stage == "sft" else {"tasks": [{"name": "a", "rows": []}]}
    plain = recipe_from_keywords(stage, **needed).stages[0]
    before = json.loads(json.dumps(inputs_of(plain, {}, {})))
    for key in keys_of(stage).keys() - needed.keys() - {"stage", "name", "hub_token"}:
        written = recipe_from_keywords(stage, **needed, **{key: plain[key]}).stages[0]
        now = inputs_of(written, {}, {})
        assert changed_inputs(before, now) == [], key
        assert changed_inputs(json.loads(json.dumps(now)), before) == [], key


def test_a_change_of_a_key_that_was_left_out_starts_at_its_default():
    before = given(dataset_name="a/b")
    assert changed_inputs(before, given(dataset_name="a/b", seed=7)) == ["seed: 42 → 7"]
    assert changed_inputs(given(dataset_name="a/b", lora_r=8), before) == ["lora_r: 8 → 16"]
    old = {"recipe": {**before["recipe"], "of_old": 1}}
    assert changed_inputs(old, before) == ["of_old: 1 → 'absent'"]
