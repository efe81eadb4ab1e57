"""Prompts to answer, with every column that a reward may read beside them."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests import tiny
from toolkit.data.columns import exact_columns
from toolkit.data.files import read_objects
from toolkit.data.formats import to_standard
from toolkit.data.prompts import prompt_lengths
from toolkit.data.sources import load_rows
from toolkit.errors import DataError
from toolkit.models import chatml
from toolkit.recipe import recipe_from_keywords

USER = {"role": "user", "content": "2+2"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "4"}


def standard(*rows):
    return to_standard(read_objects(rows, "rows"), origin="rows", purpose="prompt")


def recipe(stage: str = "grpo", **keys):
    written = {"model_name_or_path": "base", "output_dir": "x", "reward_funcs": ["answer"]} | keys
    return recipe_from_keywords(stage, **written).stages[0]


SHAPES = {
    "text": ({"prompt": "2+2"}, "2+2"),
    "messages": ({"prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
    "messages in messages": ({"messages": [USER]}, [USER]),
    "earlier turns": ({"messages": [USER, ANSWER, USER]}, [USER, ANSWER, USER]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "2+2"}]}, [USER]),
    "sharegpt with system": (
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "2+2"}]}, [SYSTEM, USER],
    ),
    "question": ({"question": "2+2", "answer": "#### 4"}, [USER]),
    "problem": ({"problem": "2+2", "answer": "4"}, [USER]),
    "query": ({"query": "2+2"}, [USER]),
    "instruction and input": (
        {"instruction": "add", "input": "2 2", "output": "4"}, [{**USER, "content": "add\n\n2 2"}],
    ),
    "question and a whole conversation": (
        {"problem": "2+2", "messages": [USER, ANSWER], "answer": "4"}, [USER],
    ),
    "prompt before all others": ({"prompt": "2+2", "question": "x", "messages": [ANSWER]}, "2+2"),
    "the result of a call": (
        {"prompt": [USER, {**ANSWER, "content": "<call>"}, {"role": "tool", "content": "4"}]},
        [USER, {**ANSWER, "content": "<call>"}, {"role": "tool", "content": "4"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_every_other_column(name: str):
    row, prompt = SHAPES[name]
    rows, form, _ = standard(row, row)
    assert form == "prompt"
    kept = {key: value for key, value in row.items() if key != "prompt"}
    place = {"dataset": "rows", "source": "rows", "row": 2}
    assert rows[1] == {"prompt": prompt, **kept, **place}


def test_what_is_converted_is_said():
    assert standard({"prompt": "2+2", "answer": "4"})[2] == []
    assert standard({"question": "2+2", "answer": "4"})[2] == [
        "rows: question read as the user's message"
    ]
    assert standard({"instruction": "a", "input": "b", "system": "c"})[2] == [
        "rows: instruction and input read as the user's message, system → system"
    ]
    assert standard({"messages": [USER]})[2] == ["rows: messages read as the prompt"]


def test_a_solution_without_an_answer_is_told():
    note = "no column answer, but solution: the reward answer reads answer unless told which"
    assert standard({"prompt": "2+2", "solution": "4"})[2] == [f"rows: {note}"]
    assert standard({"problem": "2+2", "solution": "4"})[2] == [
        f"rows: problem read as the user's message; {note}"
    ]
    assert standard({"problem": "2+2", "solution": "4", "answer": "4"})[2] == [
        "rows: problem read as the user's message"
    ]


def test_columns_stay_exactly_as_they_are():
    values = {
        "answer": "Half of 36 is <<36/2=18>>18.\n#### 18",
        "tests": [{"in": 1}, {"out": None, "pi": 3.141592653589793}],
        "limits": {"small": 1e-12, "large": 2**60},
        "level": 5, "share": 0.1, "ok": True, "chosen": [ANSWER], "nothing": None,
    }  # fmt: skip
    rows, _, notes = standard({"prompt": "a", **values}, {"prompt": "b", "tests": "none"})
    read = exact_columns(rows.with_format("arrow")[:])
    assert {name: read[name][0] for name in values} == values
    assert [read["tests"][1], read["level"][1]] == ["none", None]
    assert rows[0]["limits"] == values["limits"]
    assert rows[0]["tests"] == values["tests"]
    assert notes == []


def test_a_number_that_could_not_be_read_again_is_refused_before_training():
    rows = {"prompt": "a", "answer": 2**62}, {"prompt": "b", "answer": 2**64}
    with pytest.raises(DataError, match=r"row 2, column 'answer': a number .*; write it as text"):
        standard(*rows)
    read = standard(rows[0], {"prompt": "b", "answer": [str(2**64)]})[0]
    assert read["answer"][:] == [2**62, [str(2**64)]]


def test_columns_of_an_arrow_table_keep_their_types():
    given = Dataset.from_list([{"question": "a", "answer": "4", "cases": [{"x": 1, "y": None}]}])
    rows, _, _ = to_standard(given, origin="rows", purpose="prompt")
    for name in ("question", "answer", "cases"):
        assert rows.features[name] == given.features[name]
        assert rows[name][:] == given[name][:]


def test_columns_that_trl_fills_itself_are_left_out_and_told():
    rows, _, notes = standard({"prompt": "a", "completion": "b", "completions": "c", "answer": "d"})
    assert rows.column_names == ["prompt", "dataset", "source", "row", "answer"]
    assert notes == ["rows: not used: completion, completions"]


def test_columns_named_as_the_place_of_a_row_are_passed_by_another_name(tmp_path: Path):
    row = {"prompt": "a", "source": "olympiads", "row": 7, "dataset": "numina"}
    own = {"own_source": "olympiads", "own_row": 7, "own_dataset": "numina"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")
    for name in (str(path), str(tmp_path / "a.parquet")):
        rows = load_rows(recipe(dataset_name=name), purpose="prompt")
        place = {"dataset": name, "source": name, "row": 1}
        assert rows.train[0] == {"prompt": "a", **own, **place}
        note = "its own dataset, source, row passed as own_dataset, own_source, own_row"
        assert rows.notes == [f"{name}: {note}"]
    for given in ([row], Dataset.from_list([row])):
        rows = load_rows(recipe(dataset_name="x"), purpose="prompt", train_dataset=given)
        assert rows.train[0] | own == rows.train[0]
        assert rows.train[0]["source"] == "train_dataset"
    texts = to_standard(read_objects([{"text": "a", "source": "b"}], "rows"), origin="rows")
    assert texts[2] == ["rows: not used: own_source"]


BROKEN = {
    "answered prompt": (
        {"prompt": [USER, ANSWER]},
        "rows, row 1, column 'prompt[1]': the assistant's turn ends the prompt, so nothing is left "
        "to answer: end it with the user's turn",
    ),
    "answered messages": ({"messages": [USER, ANSWER]}, "column 'messages[1]': the assistant's turn"),
    "empty prompt": ({"prompt": "  "}, "column 'prompt': the text is empty"),
    "empty question": ({"question": ""}, "column 'question': the text is empty"),
    "no messages": ({"prompt": []}, "column 'prompt': the list of messages is empty"),
    "null": ({"prompt": None}, "column 'prompt': null or absent"),
    "number": ({"prompt": 5}, "column 'prompt': expected text or a list of messages, found a number"),
    "object": ({"prompt": {"role": "user"}}, "expected text or a list of messages, found an object"),
    "role": ({"prompt": [{"role": "usr", "content": "a"}]}, "unknown role 'usr'; did you mean 'user'?"),
    "documents": ({"text": "a"}, "found the columns text; a column text is a document, not a prompt"),
    "preferences": ({"chosen": "a", "rejected": "b"}, "chosen and rejected hold no prompt of their own"),
    "others": ({"foo": "a"}, "expected prompt, or messages that end with the user's turn, or question"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_with_column_and_rule(name: str):
    broken, expected = BROKEN[name]
    with pytest.raises(DataError) as error:
        standard(broken)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_text_and_messages_in_one_column_are_refused():
    for rows in ([USER], "a"), ("a", [USER]):
        with pytest.raises(DataError, match=r"column 'prompt': text, but other rows have a list"):
            standard(*({"prompt": prompt} for prompt in rows))


def test_python_objects_and_held_out_prompts():
    given = [{"prompt": f"{n % 10}", "answer": str(n)} for n in range(30)]
    keys = {"dataset_name": "x", "test_split_size": 0.2, "eval_strategy": "epoch", "seed": 1}
    for rows in (given, Dataset.from_list(given)):
        found = load_rows(recipe(**keys), purpose="prompt", train_dataset=rows)
        assert found.eval is not None
        assert (len(found.train), len(found.eval), found.format) == (24, 6, "prompt")
        assert set(found.train["prompt"][:]).isdisjoint(found.eval["prompt"][:])
        assert found.notes == ["2 prompts (6 rows) held out by test_split_size"]


def test_a_stage_without_keys_of_training(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b", "answer": 4}\n', encoding="utf-8")
    rows = load_rows(recipe("rank", dataset_name=str(path), start_from="./sft"), purpose="prompt")
    assert rows.train["row"][:] == [1, 3]
    assert rows.train["answer"][:] == [None, 4]
    assert rows.eval is None


def test_gsm8k(gsm8k: Path):
    rows = load_rows(recipe(dataset_name=str(gsm8k)), purpose="prompt")
    assert (len(rows.train), rows.conversational) == (7473, True)
    first = json.loads(gsm8k.read_text(encoding="utf-8").partition("\n")[0])
    assert rows.train[0]["prompt"] == [{"role": "user", "content": first["question"]}]
    assert rows.train[0]["answer"] == first["answer"]
    assert rows.train[0]["answer"].endswith("#### 72")
    assert rows.notes == [f"{gsm8k}: question read as the user's message"]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    chatml.prepare_tokenizer(tokenizer, conversational=True)
    return tokenizer


def test_lengths_are_those_of_what_trl_renders(words: PreTrainedTokenizerFast):
    prompts = [[USER], [SYSTEM, USER], [USER, ANSWER, {**USER, "content": "x" * 300}]]
    rows, _, _ = standard(*({"prompt": prompt} for prompt in prompts))
    rendered = [words.apply_chat_template(p, add_generation_prompt=True) for p in prompts]
    assert prompt_lengths(rows, words)[1] == [len(ids["input_ids"]) for ids in rendered]
    texts, _, _ = standard({"prompt": "a" * 7}, {"prompt": "<|im_end|>"})
    assert prompt_lengths(texts, words)[1] == [7, 1]


def test_lengths_of_texts_count_what_the_tokenizer_adds(stories: Path):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    rows, _, _ = standard({"prompt": "Once upon a time"}, {"prompt": "Lily"})
    expected = [len(ids) for ids in tokenizer(["Once upon a time", "Lily"])["input_ids"]]
    assert prompt_lengths(rows, tokenizer)[1] == expected
    assert tokenizer("Lily")["input_ids"][0] == tokenizer.bos_token_id


def test_a_prompt_that_the_template_refuses_is_named(words: PreTrainedTokenizerFast):
    words.chat_template = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no!') }}{% endif %}{% endfor %}"
    rows, _, _ = standard({"prompt": [USER]}, {"prompt": [{**USER, "content": "bad"}]})
    with pytest.raises(
        DataError, match="rows, row 2: the chat template cannot render the prompt: no"
    ):
        prompt_lengths(rows, words)
