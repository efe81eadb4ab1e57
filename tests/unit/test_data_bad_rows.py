"""Broken files and broken rows: refused with file, line, rule and remedy, or left out and counted."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from test_data_sources import BROKEN, LINE
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from toolkit import cli
from toolkit.data.bad_rows import BROKEN as COLUMN
from toolkit.data.bad_rows import BadRows
from toolkit.data.formats import to_standard
from toolkit.data.pairs import tokenize_pairs
from toolkit.data.prompts import askable, prompt_lengths
from toolkit.data.sequences import tokenize
from toolkit.data.sources import Rows, load_rows, load_table
from toolkit.errors import DataError
from toolkit.models import chatml
from toolkit.recipe import recipe_from_keywords

USER = {"role": "user", "content": "2+2"}
TURN = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
OTHER = {"role": "user", "content": "3+3"}
PURPOSES = ("sft", "preference", "prompt")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    chatml.prepare_tokenizer(tokenizer, conversational=True)
    return tokenizer


def row_of(purpose: str, prompt) -> dict:
    """A row whose prompt is this, for what it is read for."""
    if purpose == "sft":
        return {"prompt": prompt, "completion": [TURN] if isinstance(prompt, list) else "4"}
    if purpose == "prompt":
        return {"prompt": prompt}
    return {"prompt": prompt, "chosen": [TURN], "rejected": [WRONG]}


def read(path: Path, purpose: str, words, most: int = 0) -> tuple[Rows, int]:
    """What a stage reads of a file, and how many sequences, pairs or prompts become of it."""
    stage = {"sft": "sft", "preference": "dpo", "prompt": "grpo"}[purpose]
    rewarded = {"reward_funcs": ["length"]} if stage == "grpo" else {}
    recipe = recipe_from_keywords(
        stage, model_name_or_path="m", dataset_name=str(path), max_bad_rows=most, **rewarded
    ).stages[0]
    rows = load_rows(recipe, purpose=purpose)
    if purpose == "sft":
        made = tokenize(rows.train, words, format=rows.format, max_length=None, bad=rows.bad)
        return rows, len(made.dataset)
    if purpose == "preference":
        return rows, len(tokenize_pairs(rows.train, words, max_length=None, bad=rows.bad).dataset)
    return rows, len(prompt_lengths(rows.train, words, bad=rows.bad)[1])


# What is a fault of the whole file, and not of some rows, is refused whatever is allowed.
OF_THE_FILE = {"nul in a key", "empty", "blank", "utf-16", "one document", "keys are data"}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_line_is_left_out_and_named(tmp_path: Path, words, name: str):
    broken, reason = BROKEN[name]
    if name not in OF_THE_FILE:
        lines = [line for line in broken.split(b"\n") if line.strip() and line != LINE.encode()]
        broken = b"\n".join([LINE.encode(), lines[-1], LINE.encode()])
    path = tmp_path / "rows.jsonl"
    path.write_bytes(broken)
    if name in OF_THE_FILE:
        with pytest.raises(DataError) as error:
            read(path, "sft", words, most=9)
        assert reason in str(error.value)
        return
    rows, count = read(path, "sft", words, most=9)
    assert rows.train["row"][:] == [1, 3]
    assert count == 2
    assert rows.notes[-2] == "warning: 1 bad row left out, of at most 9 (max_bad_rows)"
    assert rows.notes[-1].startswith(f"{path}:2: ")
    assert reason.partition(": ")[2] in rows.notes[-1]
    with pytest.raises(
        DataError, match=r"row 2.*; mend the row, or set max_bad_rows to go on"
    ) as e:
        read(path, "sft", words)
    assert "\n" not in str(e.value)


MIXED = {
    "mixed types": ({"text": 5}, "column 'text': expected text, found a number"),
    "missing column": ({"txt": "a"}, "column 'text': null or absent"),
    "null": ({"text": None}, "column 'text': null or absent"),
    "another form": ({"text": [USER, TURN]}, "column 'text': expected text, found a list"),
}


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_differ_from_the_others(tmp_path: Path, words, name: str):
    broken, reason = MIXED[name]
    path = tiny.save_rows(tmp_path / "rows.jsonl", [{"text": "a"}, broken, {"text": "b"}])
    with pytest.raises(DataError) as error:
        read(path, "sft", words)
    assert f"{path}, row 2, {reason}" in str(error.value)
    rows, count = read(path, "sft", words, most=1)
    assert (rows.train["row"][:], count) == ([1, 3], 2)


@pytest.mark.parametrize("purpose", ["sft", "prompt"])
@pytest.mark.parametrize("broken", [5, {"a": 1}, [USER], None])
def test_one_row_of_another_kind_is_the_broken_one(tmp_path: Path, words, purpose, broken):
    rows = [row_of(purpose, prompt) for prompt in ("a", broken, "b")]
    path = tiny.save_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2, column '(prompt|completion)': "):
        read(path, purpose, words)
    assert read(path, purpose, words, most=1)[1] == 2


ZOO = {
    "empty": ([], "column 'prompt': the list of messages is empty"),
    "null content": ([{"role": "user", "content": None}], "column 'prompt[0].content': null or absent"),
    "number": ([{"role": "user", "content": 4}], "column 'prompt[0].content': expected text, found a number"),
    "no role": ([{"content": "a"}], "column 'prompt[0]': no role (keys: content)"),
    "unknown role": ([{"role": "usr", "content": "a"}], "column 'prompt[0].role': unknown role 'usr'; did you mean 'user'?"),
    "not an object": (["a"], "column 'prompt[0]': expected an object with role and content, found text"),
    "assistant first": ([TURN, USER], "column 'prompt[0]': the assistant's turn comes first"),
    "two users": ([USER, USER], "column 'prompt[1]': two user turns in a row; make them one"),
    "tool without call": (
        [USER, {"role": "tool", "content": "4"}], "column 'prompt[1]': a tool's result without an assistant turn",
    ),
    "an object": ({"role": "user", "content": "a"}, "found an object"),
    "null": (None, "column 'prompt': null or absent"),
    "text": ("2+2", "column 'prompt': text, but other rows have a list of messages"),
    "half a pair": ([{"role": "user", "content": "\ud83d"}], "half of a surrogate pair"),
    "control token": (
        [{"role": "user", "content": "a<|im_end|>\n<|im_start|>assistant\nb"}],
        "message 0: the user's text contains '<|im_end|>', which is read as a control token, not as these letters: write it",
    ),
    "control token in blocks": (
        [{"role": "user", "content": [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]}],
        "message 0: the user's text contains '<|im_end|>'",
    ),
    "control token of the system": (
        [{"role": "system", "content": "<|endoftext|>"}, USER], "message 0: the system's text contains '<|endoftext|>'",
    ),
    "control token of a tool": (
        [USER, TURN, {"role": "tool", "content": "<|im_start|>"}], "message 2: the tool's text contains '<|im_start|>'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("name", ZOO)
def test_a_broken_conversation_is_refused_or_left_out(tmp_path: Path, words, purpose, name):
    prompt, reason = ZOO[name]
    if purpose == "preference" and name == "text":
        pytest.skip("a prompt of text is the user's turn there")
    if purpose == "sft" and name == "text":
        reason = "a list, but prompt is text: both are text, or both lists"
    broken = row_of(purpose, prompt) | ({"completion": [TURN]} if purpose == "sft" else {})
    rows = [row_of(purpose, [USER]), broken, row_of(purpose, [OTHER])]
    path = tiny.save_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as error:
        read(path, purpose, words)
    message = str(error.value)
    assert f"{path}, row 2" in message
    if not (name in ("an object", "number") and purpose == "sft"):
        assert reason in message
    assert message.endswith("; mend the row, or set max_bad_rows to go on without it")
    assert "\n" not in message
    assert error.value.exit_code == 4
    found, count = read(path, purpose, words, most=1)
    assert count == 2
    assert found.notes[-1].startswith(f"{path}:2: ")
    assert found.bad.record() == {"count": 1, "first": ["rows.jsonl:2"]}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER], "no assistant turn, so nothing to train"),
        ([{"role": "system", "content": "a"}, USER], "no assistant turn, so nothing to train"),
        ([TURN, USER, TURN], "the assistant's turn comes first"),
        ([USER, {"role": "assistant", "content": "a<|im_end|>b"}], "'<|im_end|>', which ends a turn"),
        ([USER, {**USER, "content": "b"}, TURN], "two user turns in a row"),
    ],
)  # fmt: skip
def test_a_conversation_to_imitate(tmp_path: Path, words, messages, reason):
    good = {"messages": [USER, TURN]}
    path = tiny.save_rows(tmp_path / "rows.jsonl", [good, {"messages": messages}, good])
    with pytest.raises(DataError) as error:
        read(path, "sft", words)
    assert f"{path}, row 2" in str(error.value)
    assert reason in str(error.value)
    assert read(path, "sft", words, most=1)[0].bad.record()["count"] == 1


@pytest.mark.parametrize("key", ["chosen", "rejected"])
def test_an_answer_that_is_none_of_the_assistants(tmp_path: Path, words, key):
    good = row_of("preference", [USER])
    for broken, reason in (([OTHER], "two user turns|found user|one assistant turn|whole prompt"),
                           ([{"role": "assistant", "content": "a<|im_end|>"}], "ends a turn")):  # fmt: skip
        path = tiny.save_rows(tmp_path / "rows.jsonl", [good, {**good, key: broken}])
        with pytest.raises(DataError, match=rf"rows\.jsonl, row 2.*({reason})"):
            read(path, "preference", words)
        assert read(path, "preference", words, most=1)[1] == 1


def test_a_control_token_in_the_tools_is_refused(tmp_path: Path, words):
    tools = [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]
    row = {"messages": [USER, TURN], "tools": tools}
    path = tiny.save_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=r"row 1: the tools' text contains '<\|im_end\|>'"):
        read(path, "sft", words)


def test_a_text_may_say_what_it_likes(tmp_path: Path, words):
    rows = [{"prompt": "<|im_start|>user\na<|im_end|>", "completion": "b"}]
    assert read(tiny.save_rows(tmp_path / "rows.jsonl", rows), "sft", words)[1] == 1


def test_a_row_of_one_token_is_refused(tmp_path: Path, words):
    words = tiny.tokenizer()
    words.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    path = tiny.save_rows(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "x"}])
    with pytest.raises(DataError, match="row 2: the row is one token only"):
        read(path, "sft", words)


def test_too_many_bad_rows_are_refused_and_listed(tmp_path: Path, words):
    bad = {"messages": [USER, USER, TURN]}
    lines = [LINE, json.dumps(bad), "{", "nonsense", json.dumps({"messages": []}), LINE]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines[:2] + lines[3:]), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read(path, "sft", words, most=2)
    assert str(error.value).startswith("over 2 bad rows, which is all that max_bad_rows allows: ")
    for at, why in ((3, "character 1: not JSON"), (2, "column 'messages[1]': two user turns")):
        assert f"{path}:{at}: {why}" in str(error.value)
    rows, _ = read(path, "sft", words, most=3)
    assert rows.notes[0] == "warning: 3 bad rows left out, of at most 3 (max_bad_rows)"
    assert [note.split(": ")[0] for note in rows.notes[1:]] == [f"{path}:{at}" for at in (3, 2, 4)]


def test_many_bad_rows_are_counted_and_the_first_named():
    bad = BadRows(most=20)
    for row in range(12):
        bad.add("/x/a.jsonl", row, f"/x/a.jsonl, row {row}: wrong")
    assert (
        bad.lines()[0]
        == "warning: 12 bad rows left out, of at most 20 (max_bad_rows); the first 5:"
    )
    assert bad.lines()[1:] == [f"/x/a.jsonl:{row}: wrong" for row in range(5)]
    assert bad.record() == {"count": 12, "first": [f"a.jsonl:{row}" for row in range(5)]}


def test_nothing_but_bad_rows_is_an_error(tmp_path: Path, words):
    path = tiny.save_rows(tmp_path / "rows.jsonl", [{"messages": [USER]}] * 2)
    with pytest.raises(DataError, match=r"all 2 rows are bad: .*rows\.jsonl:1: "):
        read(path, "sft", words, most=9)
    spoken = {"role": "user", "content": "<|im_end|>"}
    for purpose in PURPOSES:
        path = tiny.save_rows(tmp_path / "rows.jsonl", [row_of(purpose, [spoken])] * 2)
        with pytest.raises(DataError, match=r"are bad|no prompt can be asked"):
            read(path, purpose, words, most=9)


def test_bad_rows_of_all_files_count_together(tmp_path: Path, words):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(f"{LINE}\nnonsense\n", encoding="utf-8")
    keys = {"model_name_or_path": "m", "dataset_name": str(tmp_path), "eval_strategy": "epoch"}
    with pytest.raises(DataError, match="over 1 bad rows"):
        load_rows(recipe_from_keywords("sft", max_bad_rows=1, **keys).stages[0])
    rows = load_rows(recipe_from_keywords("sft", max_bad_rows=2, **keys).stages[0])
    assert [Path(found.split(": ")[0]).name for found in rows.bad.found] == [
        "train.jsonl:2", "test.jsonl:2",
    ]  # fmt: skip


def test_a_bad_row_counts_once_though_its_file_is_read_for_two_splits(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{LINE}\nnonsense\n{LINE}\n", encoding="utf-8")
    keys = {"dataset_train_split": "train[:1]", "dataset_test_split": "train[1:]"}
    keys |= {"model_name_or_path": "m", "dataset_name": str(path), "eval_strategy": "epoch"}
    rows = load_rows(recipe_from_keywords("sft", max_bad_rows=1, **keys).stages[0])
    assert rows.bad.record() == {"count": 1, "first": ["rows.jsonl:2"]}


def test_only_where_a_recipe_may_allow_it_is_it_told_how(tmp_path: Path):
    path = tmp_path / "exam.jsonl"
    path.write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"; mend the row$"):
        load_table(path)


def test_prompts_to_rank_spell_out_no_control_token(words):
    prompts = [[USER], [{"role": "user", "content": "<|im_end|>"}], [OTHER]]
    given = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    rows = to_standard(given, origin="f", purpose="prompt")[0]
    bad = BadRows(most=1)
    assert askable(rows, words, bad)["row"][:] == [1, 3]
    assert bad.found[0].startswith("f:2: message 0: the user's text contains '<|im_end|>'")
    with pytest.raises(DataError, match="f, row 2: message 0"):
        askable(rows, words, BadRows())
    with pytest.raises(DataError, match="no prompt can be asked: f:2: "):
        askable(rows.select([1]), words, BadRows(most=1))
    assert len(askable(rows, tiny.tokenizer(), BadRows())) == 3


def test_cells_and_documents_too(tmp_path: Path, words):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\n1,2\n3\n4,5\n", encoding="utf-8")
    assert read(path, "sft", words, most=1)[0].train["row"][:] == [2, 4]
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, 5]', encoding="utf-8")
    rows, _ = read(path, "sft", words, most=1)
    assert rows.bad.found == [f"{path}:2: expected an object, found a number"]


def test_a_user_column_of_a_large_number(tmp_path: Path, words):
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2**70}, {"prompt": "c", "n": "x"}]
    path = tiny.save_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"row 2, column 'n': a number that datasets cannot read"):
        read(path, "prompt", words)
    assert read(path, "prompt", words, most=1)[0].train["row"][:] == [1, 3]


def test_one_process_and_two_leave_out_the_same(words):
    rows = [{"messages": [USER, TURN]}] * 5
    rows[3] = {"messages": [{"role": "user", "content": "<|im_end|>"}, TURN]}
    keys = {"model_name_or_path": "m", "dataset_name": "x", "max_bad_rows": 1}
    for count in (None, 2):
        found = load_rows(recipe_from_keywords("sft", **keys).stages[0], train_dataset=rows)
        made = tokenize(
            found.train, words, format="messages", max_length=None, num_proc=count, bad=found.bad
        )
        assert made.dataset["row"][:] == [1, 2, 3, 5]
        assert COLUMN not in made.dataset.column_names
        assert made.report.rows == 4
        assert found.bad.record() == {"count": 1, "first": ["train_dataset:4"]}


def test_the_command_line(tmp_path: Path, tiny_base: Path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{LINE}\nnonsense\n{LINE}\n", encoding="utf-8")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"stage: sft\nmodel_name_or_path: {tiny_base}\ndataset_name: {path}\n")
    assert cli.main(["inspect", str(recipe)]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"error: {path}, row 2, character 1: not JSON: Expecting value; mend the row" in error
    assert cli.main(["inspect", str(recipe), "--max-bad-rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "warning: 1 bad row left out, of at most 1 (max_bad_rows)" in shown
    assert "rows.jsonl:2: character 1: not JSON" in shown.replace("\n     ", " ")
    assert cli.main(["inspect", str(recipe), "--max-bad-rows", "-1"]) == 3
