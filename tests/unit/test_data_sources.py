import datetime
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from toolkit.data.columns import exact_columns
from toolkit.data.sources import load_rows, load_table, split_rows
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import recipe_from_keywords

CHAT = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]}
LINE = json.dumps(CHAT)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def recipe(**keys):
    return recipe_from_keywords("sft", model_name_or_path="base", output_dir="x", **keys).stages[0]


BROKEN = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n\n \n", "the file has no rows"),
    "cut off": (LINE.encode() + b"\n" + LINE.encode()[:-5], "row 2: the JSON ends too early"),
    "cut off inside": (
        b'{"text": "a"}\r\n{"text": "a"\r\n',
        "row 2: the JSON ends too early",
    ),
    "not json": (LINE.encode() + b"\n\n{'a': 1}\n", "row 3, character 2: not JSON"),
    "scalar": (b"5\n", "row 1: expected an object, {…}, on each line, found a number"),
    "array": (b"[1]\n", "found a list"),
    "null": (b"null\n", "found null"),
    "twice": (b'{"text": "a"}\n{"text": "a", "text": "b"}\n', "row 2: key 'text' stands twice"),
    "nan": (b'{"text": "a", "x": NaN}\n', "row 1: NaN is not JSON"),
    "latin-1": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "row 2: byte 0xe9 is not UTF-8"),
    "utf-16": ('{"text": "a"}\n'.encode("utf-16"), "row 1: the file is UTF-16"),
    "half a pair": (b'{"text": "\\ud83d"}\n', "row 1: half of a surrogate pair"),
    "one document": (b'[\n{"text": "a"}\n]\n', "name the file .json"),
    "nul": (b'{"text": "a\0b"}\n', "row 1, character 12: not JSON: Invalid control character"),
    "nul in a key": (b'{"text": "a"}\n{"a\\u0000b": 1}\n', "row 2: the key 'a\\x00b' has a NUL"),
    "infinite": (b'{"text": "a", "x": 1e999}\n', "row 1: the number 1e999 is too large"),
    "long number": (b'{"x": ' + b"9" * 5000 + b"}\n", "row 1: Exceeds the limit"),
    "keys are data": (
        b"".join(b'{"id%d": {}}\n' % n for n in range(3000)),
        "over 1,000 different keys by row 2,000, such as id0, id1, id10",
    ),
    "deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deeply"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_jsonl_names_file_and_line(tmp_path: Path, name: str):
    content, expected = BROKEN[name]
    path = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(DataError) as error:
        load_table(path)
    assert expected in str(error.value)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_jsonl_that_is_read(tmp_path: Path):
    content = b'\xef\xbb\xbf{"text": "a", "n": 1}\r\n\r\n{"text": "b\\u0000\\ud83d\\ude00"}\r\n'
    table, origin = load_table(write(tmp_path / "rows.jsonl", content))
    assert table["text"][:] == ["a", "b\0😀"]
    assert table["row"][:] == [1, 3]
    assert table["n"][:] == [1, None]
    assert origin["rows"] == 2
    assert len(origin["sha256"]) == 64
    assert "1 blank line skipped" in origin["notes"][0]


def test_objects_of_different_keys_stay_as_they_are(tmp_path: Path):
    rows = [{"m": [{"a": 1}]}, {"m": [{"b": None}]}, {"m": "text"}]
    path = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert load_table(path)[0]["m"][:] == [row["m"] for row in rows]


def test_gzip(tmp_path: Path):
    whole = gzip.compress(f"{LINE}\n{LINE}\n".encode())
    assert len(load_table(write(tmp_path / "a.jsonl.gz", whole))[0]) == 2
    with pytest.raises(DataError, match="gzip stream is broken"):
        load_table(write(tmp_path / "b.jsonl.gz", whole[:-12]))
    with pytest.raises(DataError, match=r"cannot read \.zst: unpack it first"):
        load_table(write(tmp_path / "c.jsonl.zst", b"x"))


def test_json_document(tmp_path: Path):
    for value in (
        [CHAT, CHAT],
        {"data": [CHAT, CHAT], "tags": []},
        {"version": 1, "rows": [CHAT] * 2},
    ):
        table, _ = load_table(write(tmp_path / "a.json", json.dumps(value)))
        assert table["row"][:] == [1, 2]
        assert table[1]["messages"] == CHAT["messages"]
    with pytest.raises(DataError, match="found an object with the keys a, b"):
        load_table(write(tmp_path / "b.json", '{"a": 1, "b": 2}'))
    with pytest.raises(DataError, match="row 2: expected an object, found a number"):
        load_table(write(tmp_path / "c.json", '[{"a": 1}, 5]'))
    with pytest.raises(DataError, match="line 3, character"):
        load_table(write(tmp_path / "d.json", '[{"a": 1},\n{"a": 2},\n{"a" 2}]'))


def test_json_with_a_row_on_each_line(tmp_path: Path):
    table, origin = load_table(write(tmp_path / "a.json", f"{LINE}\n\n{LINE}\n"))
    assert table["row"][:] == [1, 3]
    assert "1 blank line skipped" in origin["notes"][0]
    with pytest.raises(DataError, match="row 2: the JSON ends too early"):
        load_table(write(tmp_path / "b.json", f"{LINE}\n{LINE[:-3]}"))


def test_rows_in_many_chunks_keep_their_values(tmp_path: Path):
    rows = [{"n": n} for n in range(4100)]
    rows[4000] |= {"n": "text", "late": 1.5}
    rows[4001] |= {"n": 2**70, "late": None}
    table, _ = load_table(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert exact_columns(table.with_format("arrow")[:])["n"] == [row["n"] for row in rows]
    assert table["late"][3999:4002] == [None, 1.5, None]
    assert table["row"][:] == list(range(1, 4101))


def test_csv_cells_are_text_and_numbered_by_line(tmp_path: Path):
    path = write(tmp_path / "a.csv", 'prompt,completion\n"1+\n1",2\nx,"007"\n')
    table, _ = load_table(path)
    assert table["completion"][:] == ["2", "007"]
    assert table["prompt"][0] == "1+\n1"
    assert table["row"][:] == [2, 4]
    with pytest.raises(DataError, match="row 3: expected 2 cells, found 3"):
        load_table(write(tmp_path / "b.csv", "a,b\n1,2\n1,2,3\n"))
    with pytest.raises(DataError, match="header needs distinct names"):
        load_table(write(tmp_path / "c.csv", "a,a\n1,2\n"))
    with pytest.raises(DataError, match="row 2: not CSV: unexpected end of data"):
        load_table(write(tmp_path / "e.csv", 'a,b\n"1,2\n'))
    _, origin = load_table(write(tmp_path / "f.csv", "a,b\n1,2\n\n,,\n3,4\n"))
    assert (origin["rows"], origin["notes"]) == (2, [f"{tmp_path}/f.csv: 2 blank lines skipped"])
    assert load_table(write(tmp_path / "d.tsv", "text\tn\na, b\t1\n"))[0]["text"][:] == ["a, b"]


def test_parquet(tmp_path: Path):
    path = tmp_path / "a.parquet"
    Dataset.from_list([CHAT] * 3).to_parquet(path)
    assert load_table(str(path))[0]["row"][:] == [1, 2, 3]
    with pytest.raises(DataError, match="not a Parquet file"):
        load_table(write(tmp_path / "b.parquet", "nonsense"))


def test_folder_by_the_names_of_its_files(tmp_path: Path):
    write(tmp_path / "train-00.jsonl", f"{LINE}\n" * 3)
    write(tmp_path / "train-01.jsonl", f"{LINE}\n" * 2)
    write(tmp_path / "test.jsonl", f"{LINE}\n")
    write(tmp_path / "README.md", "about")
    table, _ = load_table(str(tmp_path))
    assert len(table) == 5
    assert table[4]["source"].endswith("train-01.jsonl")
    assert table[4]["row"] == 2
    assert len(load_table(str(tmp_path), split="test")[0]) == 1
    assert len(load_table(str(tmp_path), split="train+test")[0]) == 6
    with pytest.raises(
        DataError, match=r"no split 'validation'; found test, train: .*test_split_size"
    ):
        load_table(str(tmp_path), split="validation")


def test_folder_of_save_to_disk(tmp_path: Path):
    rows = Dataset.from_list([CHAT] * 4)
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "both")
    rows.save_to_disk(tmp_path / "one")
    assert len(load_table(str(tmp_path / "both"), split="test")[0]) == 1
    assert load_table(str(tmp_path / "one"))[0]["row"][:] == [1, 2, 3, 4]
    (tmp_path / "broken").mkdir()
    write(tmp_path / "broken" / "state.json", "{}")
    with pytest.raises(DataError, match="not a data set that save_to_disk wrote"):
        load_table(str(tmp_path / "broken"))


def test_splits_are_found_wherever_a_name_says_them(tmp_path: Path):
    for name in ("gsm_train.jsonl", "gsm_test.jsonl", "more.jsonl", "old.jsonl.zst", ".x.jsonl",
                 "dataset_infos.json", "constraints.txt"):  # fmt: skip
        write(tmp_path / "a" / name, json.dumps({"text": name}))
    table, origin = load_table(str(tmp_path / "a"))
    assert table["text"][:] == ["gsm_train.jsonl"]
    assert origin["notes"] == [f"{tmp_path / 'a'}: not read: old.jsonl.zst, more.jsonl"]
    for name in ("train/0.jsonl", "test/train_questions.jsonl", "data/valid-0.jsonl"):
        write(tmp_path / "b" / name, json.dumps({"text": name}))
    for split, name in (("train", "train/0.jsonl"), ("test", "test/train_questions.jsonl"),
                        ("validation", "data/valid-0.jsonl")):  # fmt: skip
        assert load_table(str(tmp_path / "b"), split=split)[0]["text"][:] == [name]
    for name in ("x.jsonl", "y.csv"):
        write(tmp_path / "c" / name, '{"text": "1"}' if "jsonl" in name else "text\n2\n")
    assert load_table(str(tmp_path / "c"))[0]["text"][:] == ["1", "2"]
    (tmp_path / "d" / "main").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no file of .*; its folders are main: name one"):
        load_table(str(tmp_path / "d"))
    (tmp_path / "e").mkdir()
    with pytest.raises(DataError, match=r"has no file of .*\.parquet$"):
        load_table(str(tmp_path / "e"))


def test_shards_of_different_columns_are_united_without_nulls(tmp_path: Path):
    calling = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    }
    chats = [CHAT["messages"], [CHAT["messages"][0], calling]]
    for index, chat in enumerate(chats):
        table = pa.table({"messages": pa.array([chat]), "id": [index] if index else ["zero"]})
        pq.write_table(table, tmp_path / f"train-{index}.parquet")
    rows = load_rows(recipe(dataset_name=str(tmp_path))).train
    assert rows["messages"][:] == [chats[0], [chats[1][0], calling | {"content": ""}]]
    pq.write_table(pa.table({"id": [datetime.datetime(2026, 1, 1)]}), tmp_path / "train-2.parquet")
    with pytest.raises(DataError, match="column id has different types in different files"):
        load_rows(recipe(dataset_name=str(tmp_path)))


def test_part_of_a_split_keeps_line_numbers(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", f"{LINE}\n" * 10)
    assert load_table(path, split="train[2:5]")[0]["row"][:] == [3, 4, 5]
    assert load_table(path, split="train[-20%:]")[0]["row"][:] == [9, 10]
    with pytest.raises(DataError, match="cannot read split"):
        load_table(path, split="train[2:x]")


def test_data_files_with_a_builders_name(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", f"{LINE}\n")
    assert len(load_table("json", data_files=path)[0]) == 1
    assert len(load_table("json", data_files={"train": [path], "test": path}, split="test")[0]) == 1
    write(tmp_path / "b2.jsonl", f"{LINE}\n")
    assert len(load_table(str(tmp_path), data_files="*.jsonl")[0]) == 2
    assert len(load_table(str(tmp_path.parent), data_dir=tmp_path.name)[0]) == 2
    with pytest.raises(DataError, match="data_files: there is no file /"):
        load_table("json", data_files=str(tmp_path / "b.jsonl"))


@pytest.mark.parametrize("name", ["{}/chat.jsonl", "./nowhere", "a/b/c", "{}/none/x.json"])
def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path, name: str):
    write(tmp_path / "chats.jsonl", LINE)
    with pytest.raises(DataError, match="no file or folder /") as error:
        load_table(name.format(tmp_path))
    if "chat.jsonl" in name:
        assert "near names there: chats.jsonl" in str(error.value)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~no_such_user/x", "s3://bucket/x", "  "])
def test_a_name_that_can_be_no_place(name: str):
    with pytest.raises(DataError) as error:
        load_table(name)
    assert "\0" not in str(error.value)


def test_split_does_not_depend_on_anything_but_the_seed():
    rows = Dataset.from_list([{"n": n} for n in range(100)])
    train, held_out = split_rows(rows, 0.1, seed=3)
    assert (len(train), len(held_out)) == (90, 10)
    assert sorted(train["n"][:] + held_out["n"][:]) == list(range(100))
    assert held_out["n"][:] == sorted(held_out["n"][:])
    assert held_out["n"][:] == split_rows(rows, 10, seed=3)[1]["n"][:]
    assert held_out["n"][:] != split_rows(rows, 0.1, seed=4)[1]["n"][:]
    for size in (100, 0.001):
        with pytest.raises(DataError, match="both sides need at least one row"):
            split_rows(rows, size, seed=3)


def texts(path: Path, count: int, word: str) -> str:
    return write(path, "".join(json.dumps({"text": f"{word} {n}"}) + "\n" for n in range(count)))


def test_rows_of_a_recipe(tmp_path: Path):
    path = texts(tmp_path / "a.jsonl", 20, "a")
    rows = load_rows(recipe(dataset_name=path, test_split_size=0.25, eval_strategy="epoch", seed=1))
    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval), rows.format) == (15, 5, "text")
    assert not rows.conversational
    assert set(rows.train["row"][:]).isdisjoint(rows.eval["row"][:])
    assert load_rows(recipe(dataset_name=path)).eval is None


def test_evaluation_without_rows_is_refused(tmp_path: Path):
    path = texts(tmp_path / "a.jsonl", 4, "a")
    with pytest.raises(DataError, match=r"no split 'test'.*test_split_size"):
        load_rows(recipe(dataset_name=path, eval_strategy="epoch"))
    with pytest.raises(RecipeError, match="no rows to evaluate on; set test_split_size"):
        load_rows(recipe(datasets=[{"path": path}], eval_strategy="epoch"))


def test_two_ways_to_hold_out_are_refused(tmp_path: Path):
    path = texts(tmp_path / "a.jsonl", 4, "a")
    with pytest.raises(RecipeError, match="test_split_size and dataset_test_split are both given"):
        load_rows(recipe(dataset_name=path, test_split_size=1, dataset_test_split="test"))


def test_rows_held_out_are_of_the_same_form():
    text, chat = {"prompt": "a", "completion": "b"}, {"prompt": CHAT["messages"][:1],
                                                      "completion": CHAT["messages"][1:]}  # fmt: skip
    with pytest.raises(
        DataError, match=r"eval_dataset has .* as messages, but train_dataset has .* as text"
    ):
        load_rows(recipe(dataset_name="x"), train_dataset=[text], eval_dataset=[chat])
    with_tools = {**CHAT, "tools": [{"name": "f"}]}
    rows = load_rows(recipe(dataset_name="x"), train_dataset=[CHAT], eval_dataset=[with_tools])
    assert any("1 of the 1 held-out rows" in note for note in rows.notes)


def test_streaming_is_refused(tmp_path: Path):
    path = texts(tmp_path / "a.jsonl", 4, "a")
    with pytest.raises(RecipeError, match="dataset_streaming is not supported"):
        load_rows(recipe(dataset_name=path, dataset_streaming=True))


def test_mixture_keeps_the_first_rows_in_the_fractions(tmp_path: Path):
    entries = [
        {"path": texts(tmp_path / "a.jsonl", 10, "a"), "fraction": 3.0},
        {"path": texts(tmp_path / "b.jsonl", 100, "b"), "fraction": 1.0},
    ]
    rows = load_rows(recipe(datasets=entries))
    kept = rows.train["text"][:]
    # 10 rows are three quarters of 13.3
    assert kept == [f"a {n}" for n in range(10)] + [f"b {n}" for n in range(3)]
    assert [p["used"] for p in rows.provenance] == [10, 3]
    assert {Path(source).name for source in rows.train["source"][:]} == {"a.jsonl", "b.jsonl"}
    with pytest.raises(RecipeError, match=r"fraction is a number .* found 3.0, None"):
        load_rows(recipe(datasets=[entries[0], {"path": entries[1]["path"]}]))


def test_mixture_of_chosen_columns(tmp_path: Path):
    path = write(tmp_path / "a.csv", "instruction,input,output\nadd,1 2,3\n")
    entry = {"path": path, "columns": ["instruction", "output"]}
    rows = load_rows(recipe(datasets=[entry, {"path": write(tmp_path / "b.jsonl", LINE)}]))
    assert rows.train["messages"][0][0]["content"] == "add"
    assert rows.train["dataset"][:] == [path, str(tmp_path / "b.jsonl")]
    with pytest.raises(DataError, match=r"no column 'x'; found instruction, input, output$"):
        load_rows(recipe(datasets=[{"path": path, "columns": ["x"]}]))


def test_mixture_of_forms_is_refused(tmp_path: Path):
    chats = write(tmp_path / "chats.jsonl", f"{LINE}\n")
    entries = [{"path": texts(tmp_path / "a.jsonl", 3, "a")}, {"path": chats}]
    with pytest.raises(DataError, match=r"chats\.jsonl has messages, but .*a\.jsonl has text;"):
        load_rows(recipe(datasets=entries))


def test_rows_from_python():
    rows = load_rows(recipe(dataset_name="x"), train_dataset=[CHAT, CHAT], eval_dataset=[CHAT])
    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval)) == (2, 1)
    assert rows.conversational
    assert any("1 of the 1 held-out rows are training rows too" in note for note in rows.notes)
    shuffled = Dataset.from_list([CHAT] * 4).shuffle(seed=0).select(range(3))
    assert load_rows(recipe(dataset_name="x"), train_dataset=shuffled).train["row"][:] == [1, 2, 3]
    stream = Dataset.from_list([CHAT]).to_iterable_dataset()
    for wrong in (stream, DatasetDict({"train": shuffled}), "abc"):
        with pytest.raises(DataError, match="give one split of it, not streamed"):
            load_rows(recipe(dataset_name="x"), train_dataset=wrong)  # type: ignore[arg-type]
    for wrong, what in (([], "there are no rows"), (5, "found a number"), ([{"a": {1}}], "set is not"),
                        ([{1: "a"}], "names as keys"), ([{"text": "\ud83d"}], "surrogate")):  # fmt: skip
        with pytest.raises(DataError, match=what):
            load_rows(recipe(dataset_name="x"), train_dataset=wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="train_dataset, row 2: expected a mapping, found text"):
        load_rows(recipe(dataset_name="x"), train_dataset=[CHAT, "no"])  # type: ignore[list-item]


def test_rows_and_prompts_on_both_sides_are_counted_and_named(tmp_path: Path):
    def chat(asked, answered):
        return {
            "messages": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answered},
            ]
        }

    train = [chat(str(n), "a") for n in range(9)]
    held_out = [chat("9", "a"), *train[:7], chat("3", "b"), chat("8", "c")]
    rows = load_rows(recipe(dataset_name="x"), train_dataset=train, eval_dataset=held_out)
    assert rows.notes == [
        "warning: 7 of the 10 held-out rows are training rows too (eval_dataset:2, eval_dataset:3, "
        "eval_dataset:4, eval_dataset:5, eval_dataset:6, …)",
        "warning: 2 of the 10 held-out rows have a prompt that is trained too (eval_dataset:9, "
        "eval_dataset:10)",
    ]
    texts = [{"text": "a"}, {"text": "b"}]
    rows = load_rows(recipe(dataset_name="x"), train_dataset=texts, eval_dataset=texts[:1])
    assert rows.notes == [
        "warning: 1 of the 1 held-out rows are training rows too (eval_dataset:1)"
    ]
    pairs = [{"prompt": "a", "completion": "b"}]
    rows = load_rows(
        recipe(dataset_name="x"),
        train_dataset=pairs,
        eval_dataset=[{"prompt": "a", "completion": "c"}],
    )
    assert "1 of the 1 held-out rows have a prompt that is trained too" in rows.notes[0]
    assert (
        load_rows(recipe(dataset_name="x"), train_dataset=texts[:1], eval_dataset=texts[1:]).notes
        == []
    )


def test_gsm8k(gsm8k: Path):
    rows = load_rows(recipe(dataset_name=str(gsm8k)))
    assert (len(rows.train), rows.format) == (7473, "messages")
    first = rows.train[0]["messages"]
    assert [m["role"] for m in first] == ["user", "assistant"]
    assert first[1]["content"].endswith("#### 72")
