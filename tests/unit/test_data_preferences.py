"""Pairs and rankings as they are given, and what comes of them: `prompt`, `answers`, `ranks`."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from trl.data_utils import extract_prompt

from toolkit.data.files import read_objects
from toolkit.data.formats import to_standard
from toolkit.data.sources import load_rows
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import recipe_from_keywords

USER = {"role": "user", "content": "2+2"}
SYSTEM = {"role": "system", "content": "Be brief."}


def said(text: str, **more):
    return {"role": "assistant", "content": text, **more}


def standard(*rows):
    return to_standard(read_objects(rows, "rows"), origin="rows", purpose="preference")


def recipe(stage: str = "reward", **keys):
    written = {"model_name_or_path": "base", "output_dir": "x", "dataset_name": "x"} | keys
    return recipe_from_keywords(stage, **written).stages[0]


CHATS = [[said("4")], [said("5")]]
PAIR = {"chosen": [USER, said("4")], "rejected": [USER, said("5")]}
SHAPES = {
    "texts": ({"prompt": "2+2", "chosen": "4", "rejected": "5"}, "2+2", ["4", "5"]),
    "messages": ({"prompt": [USER], "chosen": CHATS[0], "rejected": CHATS[1]}, [USER], CHATS),
    "texts after messages": ({"prompt": [USER], "chosen": "4", "rejected": "5"}, [USER], CHATS),
    "messages after a text": (
        {"prompt": "2+2", "chosen": CHATS[0], "rejected": CHATS[1]}, [USER], CHATS,
    ),
    "prompt in both": (PAIR, [USER], CHATS),
    "prompt in both and beside them": ({"prompt": [USER], **PAIR}, [USER], CHATS),
    "trl-lib/ultrafeedback_binarized": (
        {**PAIR, "score_chosen": 8.5, "score_rejected": 8.0}, [USER], CHATS,
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {"prompt": "2+2", "prompt_id": "0d0", **PAIR, "messages": PAIR["chosen"],
         "score_chosen": 8.5, "score_rejected": 8.0}, [USER], CHATS,
    ),
    "system and question": (
        {"system": "Be brief.", "question": "2+2", "chosen": "4", "rejected": "5"},
        [SYSTEM, USER], CHATS,
    ),
    "ranked texts": ({"prompt": "2+2", "answers": ["4", "5"], "ranks": [1, 2]}, "2+2", ["4", "5"]),
    "ranked after messages": (
        {"prompt": [USER], "answers": ["4", "5"], "ranks": [1, 2]}, [USER], CHATS,
    ),
    "ranked messages": ({"prompt": [USER], "answers": CHATS, "ranks": [1, 2]}, [USER], CHATS),
    "ranked messages after a text": (
        {"prompt": "2+2", "answers": CHATS, "ranks": [1, 2]}, [USER], CHATS,
    ),
    "ranked as JSON text": (
        {"prompt": "2+2", "answers": '["4", "5"]', "ranks": "[1, 2]"}, "2+2", ["4", "5"],
    ),
    "several turns": (
        {"chosen": [SYSTEM, USER, said("a"), USER, said("4")],
         "rejected": [SYSTEM, USER, said("a"), USER, said("5")]},
        [SYSTEM, USER, said("a"), USER], CHATS,
    ),
    "texts with a shared beginning": (
        {"chosen": "The sky is blue", "rejected": "The sky is green"},
        "The sky is", [" blue", " green"],
    ),
    "an empty answer": ({"prompt": "2+2", "chosen": "4", "rejected": ""}, "2+2", ["4", ""]),
    "twice the same": (
        {"chosen": PAIR["chosen"], "rejected": PAIR["chosen"]}, [USER], [CHATS[0], CHATS[0]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str):
    row, prompt, answers = SHAPES[name]
    rows, form, _ = standard(row, row)
    assert (form, len(rows)) == ("ranked", 2)
    assert rows.column_names == ["prompt", "answers", "ranks", *_tail(rows)]
    assert rows[1] | {"dataset": "", "source": ""} == {
        "prompt": prompt, "answers": answers, "ranks": [1, 2], "dataset": "", "source": "", "row": 2,
        **({"tools": None} if "tools" in rows.column_names else {}),
    }  # fmt: skip


def _tail(rows: Dataset) -> list[str]:
    return [name for name in ("tools", "dataset", "source", "row") if name in rows.column_names]


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_rows_from_arrow(name: str):
    row, prompt, answers = SHAPES[name]
    rows, _, _ = to_standard(Dataset.from_list([row]), origin="rows", purpose="preference")
    assert (rows[0]["prompt"], rows[0]["answers"]) == (prompt, answers)


def test_what_is_converted_and_not_used_is_said():
    notes = standard(SHAPES["HuggingFaceH4/ultrafeedback_binarized"][0])[2]
    assert notes == [
        "rows: the prompt is text and the answers are messages: it is read as the user's turn, "
        "unless they hold the conversation themselves",
        "rows: not used: prompt_id, messages, score_chosen, score_rejected",
    ]
    notes = standard(PAIR)[2]
    assert notes == ["rows: the prompt is what chosen and rejected both begin with"]
    notes = standard(SHAPES["system and question"][0])[2]
    assert notes == [
        "rows: converted to messages: question → user, system → system, chosen and rejected → "
        "assistant"
    ]
    assert standard(SHAPES["texts"][0] | {"tools": "[]"})[2] == ["rows: not used: tools"]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Q: why? A: it is so", "Q: why? A: it is not"),
        ("Q: why? A: so", "Q: why? A: so!"),
        ("Human: hi\n\nAssistant: a b", "Human: hi\n\nAssistant: a  c"),
        ("same text", "same text"),
    ],
)
def test_texts_without_a_prompt_are_parted_as_trl_does(chosen: str, rejected: str):
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    rows, _, _ = standard({"chosen": chosen, "rejected": rejected})
    assert rows[0]["prompt"] == expected["prompt"]
    assert rows[0]["answers"] == [expected["chosen"], expected["rejected"]]


def test_ranks_may_be_tied_or_fractions():
    rows, _, _ = standard(
        {"prompt": "a", "answers": ["b", "c", "d"], "ranks": [1, 2.5, 2.5], "scores": [3, 1, 1]},
        {"prompt": "a", "answers": ["b"], "ranks": [1], "scores": [0]},
    )
    assert rows["ranks"][:] == [[1, 2.5, 2.5], [1]]


def test_tools_stay_with_conversations():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1.23456789012345}}}
    row = {"prompt": [USER], "chosen": [said("", tool_calls=[call])], "rejected": CHATS[1]}
    rows, _, _ = standard({**row, "tools": [tool]}, {**row, "tools": None})
    assert rows["tools"][:] == [[tool], None]
    assert rows[0]["answers"][0] == [said("", tool_calls=[call])]


def ranked(answers, ranks, prompt="2+2"):
    return {"prompt": prompt, "answers": answers, "ranks": ranks}


BROKEN = {
    "no prompt in texts": (
        {"chosen": "yes", "rejected": "no"},
        "column 'chosen': there is no prompt: rejected begins otherwise; add a column prompt",
    ),
    "no prompt in messages": ({"chosen": CHATS[0], "rejected": CHATS[1]}, "there is no prompt"),
    "other questions": (
        {"chosen": [USER, said("4")], "rejected": [{**USER, "content": "3"}, said("5")]},
        "column 'chosen': there is no prompt",
    ),
    "empty prompt": (
        {"prompt": " ", "chosen": "a", "rejected": "b"}, "column 'prompt': the text is empty",
    ),
    "null prompt": (
        {"prompt": None, "chosen": "a", "rejected": "b"}, "column 'prompt': null or absent",
    ),
    "null chosen": ({"prompt": "a", "chosen": None, "rejected": "b"}, "column 'chosen': null"),
    "text and list": (
        {"prompt": "a", "chosen": "b", "rejected": CHATS[1]},
        "column 'rejected': a list, but chosen is text: all are text, or all are lists",
    ),
    "answered prompt": (
        {"prompt": [USER, said("4")], "chosen": "a", "rejected": "b"},
        "column 'prompt[1]': the assistant's turn ends the prompt, so nothing is left to answer",
    ),
    "prompt is a number": (
        {"prompt": 5, "chosen": "a", "rejected": "b"}, "expected text or a list of messages",
    ),
    "two turns": (
        {"prompt": [USER], "chosen": [said("a"), USER, said("b")], "rejected": CHATS[1]},
        "column 'chosen': expected one assistant turn after the prompt of 1 message, found "
        "assistant, user, assistant: put into the prompt what comes before the last turn",
    ),
    "parted too early": (
        {"chosen": [USER, said("a"), USER, said("b")], "rejected": [USER, said("c"), USER, said("b")]},
        "column 'chosen': expected one assistant turn after the prompt of 1 message",
    ),
    "ends with the user": (
        {"chosen": [USER, said("4"), USER], "rejected": [USER, said("4"), USER]},
        "expected one assistant turn after the prompt of 2 messages, found user",
    ),
    "assistants in a row": (
        {"chosen": [USER, said("a"), said("b")], "rejected": [USER, said("a"), said("c")]},
        "column 'chosen': two assistant turns in a row",
    ),
    "another conversation": (
        {"prompt": [USER], "chosen": [SYSTEM, USER, said("4")], "rejected": [SYSTEM, USER, said("5")]},
        "column 'chosen': expected the assistant's answer, or the whole prompt and then it",
    ),
    "no answer after the prompt": (
        {"prompt": [USER], "chosen": [USER], "rejected": [USER]}, "expected the assistant's answer",
    ),
    "unknown role": (
        {"prompt": [USER], "chosen": [{"role": "asistant", "content": "a"}], "rejected": CHATS[1]},
        "column 'chosen[0].role': unknown role 'asistant'; did you mean 'assistant'?",
    ),
    "null content": (
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": None}], "rejected": CHATS[1]},
        "column 'chosen[0].content': null or absent, and there is no tool call",
    ),
    "half a pair": (
        {"prompt": "a", "chosen": "\ud83d", "rejected": "b"}, "surrogate pair",
    ),
    "answers are text": (ranked("4", [1]), "column 'answers': expected a list, found text"),
    "answers are objects": (ranked([{"a": 1}], [1]), "column 'answers[0]': expected a list of mess"),
    "no answers": (ranked([], []), "column 'answers': the list is empty"),
    "a null answer": (ranked(["a", None], [1, 2]), "column 'answers[1]': null, but answers[0] is text"),
    "too few ranks": (ranked(["a", "b"], [1]), "column 'ranks': expected 2, one per answer, found 1"),
    "a rank is text": (ranked(["a", "b"], [1, "2"]), "column 'ranks[1]': expected a number, found text"),
    "a rank is null": (ranked(["a", "b"], [1, None]), "column 'ranks[1]': expected a number, found null"),
    "a rank is a boolean": (ranked(["a", "b"], [1, True]), "expected a number, found a boolean"),
    "scores": (
        ranked(["a", "b"], [0.9, 0.1]),
        "column 'ranks[0]': expected a rank from 1, the best, to 2, found 0.9; of scores, give the "
        "places: the highest has rank 1",
    ),
    "no list of ranks": (ranked(["a", "b"], 1), "column 'ranks': expected a list, found a number"),
    "chosen alone": ({"prompt": "a", "chosen": "b"}, "chosen without rejected; found the columns"),
    "answers alone": ({"prompt": "a", "answers": ["b"]}, "answers without ranks; found the columns"),
    "to imitate": (
        {"messages": [USER, said("4")]}, "expected prompt, chosen and rejected, or chosen and rejected",
    ),
    "without a pair": (
        {"completion": "b", "label": True},
        "completion and label are feedback, which needs a prompt beside them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_with_column_and_rule(name: str):
    broken, expected = BROKEN[name]
    with pytest.raises(DataError) as error:
        standard(broken)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    if "column '" in str(error.value):
        assert "rows, row 1, " in str(error.value)


def test_every_row_decides_not_the_first():
    text, chat = ranked(["a", "b"], [1, 2]), ranked(CHATS, [1, 2])
    with pytest.raises(
        DataError, match=r"row 2, column 'prompt': text, but other rows have a list"
    ):
        standard(chat, text)
    with pytest.raises(DataError, match=r"row 2, column 'prompt': read as .* other rows are text"):
        standard(text, chat)
    pairs = SHAPES["texts"][0], SHAPES["messages"][0]
    for rows in (pairs, pairs[::-1]):
        with pytest.raises(
            DataError, match=r"row [12], column 'prompt': text, but other rows have"
        ):
            standard(*rows)
    with pytest.raises(
        DataError,
        match="row 1, column 'answers': null, but there is prompt and chosen and rejected",
    ):
        standard(SHAPES["texts"][0], ranked(["a", "b"], [1, 2]))


def questions(count: int, each: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"question {n % count}", "chosen": f"a {n}", "rejected": f"b {n}"}
        for n in range(count * each)
    ]


def test_held_out_by_prompt_and_never_by_row():
    rows = load_rows(
        recipe(test_split_size=0.2, eval_strategy="epoch", seed=3),
        purpose="preference",
        train_dataset=questions(20, 7),
    )
    assert rows.eval is not None
    trained, held_out = set(rows.train["prompt"][:]), set(rows.eval["prompt"][:])
    assert (len(held_out), len(trained), len(rows.eval)) == (4, 16, 28)
    assert trained.isdisjoint(held_out)
    assert rows.notes == ["4 prompts (28 rows) held out by test_split_size"]
    assert rows.train["row"][:] == sorted(rows.train["row"][:])

    def held(**keys):
        found = load_rows(recipe(**keys), purpose="preference", train_dataset=questions(20, 7))
        return found.eval and found.eval["row"][:]

    assert held(test_split_size=4, seed=3) == rows.eval["row"][:]
    assert held(test_split_size=4, seed=4) != rows.eval["row"][:]
    with pytest.raises(DataError, match=r"of 1 prompts would hold out 1; both .* one prompt"):
        load_rows(recipe(test_split_size=1), purpose="preference", train_dataset=questions(1, 9))


def test_prompts_on_both_sides_are_told():
    rows = load_rows(
        recipe(), purpose="preference",
        train_dataset=questions(4, 2),
        eval_dataset=[{"prompt": "question 1", "chosen": "x", "rejected": "y"},
                      {"prompt": "question 9", "chosen": "x", "rejected": "y"}],
    )  # fmt: skip
    assert rows.notes == [
        "warning: 1 of the 2 held-out rows have a prompt that is trained too (eval_dataset:1)"
    ]


def test_a_file_that_stage_rank_wrote(tmp_path: Path):
    path = tmp_path / "ranked.jsonl"
    rows = [
        ranked(["4", "5", "6"], [1, 2, 2]) | {"scores": [1.5, 0.25, 0.25], "seed": 7},
        ranked(["3"], [1]) | {"scores": [None], "seed": 7},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = load_rows(recipe(dataset_name=str(path)), purpose="preference")
    assert found.train["answers"][:] == [["4", "5", "6"], ["3"]]
    assert found.train["row"][:] == [1, 2]
    assert not found.conversational
    assert found.notes == [f"{path}: not used: scores, seed"]
    assert found.provenance[0]["rows"] == 2


def test_a_mixture_of_pairs_and_rankings(tmp_path: Path):
    pairs, rankings = tmp_path / "pairs.jsonl", tmp_path / "ranked.jsonl"
    pairs.write_text(json.dumps(SHAPES["texts"][0]) + "\n", encoding="utf-8")
    rankings.write_text(json.dumps(ranked(["4", "5", "6"], [1, 2, 3])) + "\n", encoding="utf-8")
    entries = [{"path": str(pairs)}, {"path": str(rankings)}]
    rows = load_rows(recipe(dataset_name=None, datasets=entries), purpose="preference")
    assert [len(answers) for answers in rows.train["answers"]] == [2, 3]
    assert rows.train["dataset"][:] == [str(pairs), str(rankings)]
    rankings.write_text(json.dumps(ranked(CHATS, [1, 2])) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ranks as messages, but .*pairs\.jsonl has .* as text"):
        load_rows(recipe(dataset_name=None, datasets=entries), purpose="preference")


def test_dpo_reads_them_too_and_sft_does_not():
    rows = load_rows(recipe("dpo"), purpose="preference", train_dataset=[PAIR])
    assert rows.conversational
    sft = recipe_from_keywords("sft", model_name_or_path="b", output_dir="x", dataset_name="x")
    with pytest.raises(DataError, match="stage reward or dpo reads them"):
        load_rows(sft.stages[0], train_dataset=[PAIR])
    with pytest.raises(RecipeError, match="no rows to evaluate on; set test_split_size"):
        load_rows(recipe(eval_strategy="epoch"), purpose="preference", train_dataset=[PAIR])
