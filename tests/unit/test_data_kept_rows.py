"""Large data: read once, in bounded memory, and kept until anything that it depends on changes."""

import errno
import json
import os
from pathlib import Path

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny
from toolkit.data import columns, files, kept_rows, key, once, sequences
from toolkit.data.bad_rows import BadRows
from toolkit.data.chat import state_of
from toolkit.data.sequences import token_fingerprint, tokenize
from toolkit.data.sources import load_rows
from toolkit.data.tables import load_table
from toolkit.errors import DataError
from toolkit.models.chatml import prepare_tokenizer
from toolkit.recipe import recipe_from_keywords


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Where rows are kept: every file counts as large, and has several chunks."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in (once, kept_rows):
        monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(columns, "CHUNK_ROWS", 3)
    monkeypatch.setattr(files, "PARQUET_ROWS", 3)
    return tmp_path / "cache" / "toolkit"


@pytest.fixture
def spoken():
    """A tokenizer with ChatML."""
    found = tiny.tokenizer()
    prepare_tokenizer(found, conversational=True)
    return found


def rows_of(path, **more):
    recipe = recipe_from_keywords(
        "sft", model_name_or_path="x", dataset_name=str(path), **more
    ).stages[0]
    return load_rows(recipe)


def tokens_of(rows, tokenizer, max_length=100):
    found = tokenize(rows.train, tokenizer, format=rows.format, max_length=max_length)
    return found.dataset["input_ids"][:]


def never(*_, **__):
    raise AssertionError("it was made again")


MIXED = [
    {"text": f"row {i}", **({"more": i if i < 5 else str(i)} if i % 2 else {})} for i in range(10)
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_what_is_kept_is_what_is_read(name, tmp_path, kept, monkeypatch):
    path = tmp_path / name
    if name == "a.csv":
        path.write_text("text,more\n" + "".join(f"row {i},{i}\n" for i in range(10)))
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": [f"row {i}" for i in range(10)], "more": range(10)}), path)
    else:
        tiny.save_rows(path, MIXED)
    large, _ = load_table(path)
    again, _ = load_table(path)
    assert large.cache_files
    assert large.cache_files == again.cache_files
    for module in (once, kept_rows):
        monkeypatch.setattr(module, "LARGE", 1 << 30)
    small, _ = load_table(path)
    assert not small.cache_files
    assert large.features == small.features
    assert list(large) == list(again) == list(small)
    assert large["row"][-1] == (11 if name == "a.csv" else 10)


def test_the_second_run_makes_nothing_again(chats, kept, spoken, monkeypatch):
    first = tokens_of(rows_of(chats), spoken)
    assert len(list(kept.glob("*.arrow"))) == 3, "as read, in the standard form, as tokens"
    for module, name in ((kept_rows, "read_file"), (sequences, "_encode")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("toolkit.data.formats._convert", never)
    assert tokens_of(rows_of(chats), spoken) == first


def test_a_change_of_the_data_is_seen(chats, kept, spoken):
    before = tokens_of(rows_of(chats), spoken)
    times = chats.stat()
    chats.write_text(chats.read_text().replace("Answer 0", "Answer X"))
    os.utime(chats, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = tokens_of(rows_of(chats), spoken)
    assert [len(ids) for ids in after] == [len(ids) for ids in before]
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_a_change_of_the_template_or_of_a_token_is_seen(chats, kept, spoken):
    rows = rows_of(chats)
    before = tokens_of(rows, spoken)
    spoken.chat_template = spoken.chat_template.replace("<|im_start|>", "<|im_start|> ")
    assert tokens_of(rows, spoken) != before
    spoken.chat_template = spoken.chat_template.replace("<|im_start|> ", "<|im_start|>")
    assert tokens_of(rows, spoken) == before
    spoken.add_tokens(["question"])
    state_of(spoken, None)
    spoken.add_tokens(["Question"])
    assert tokens_of(rows, spoken) != before


def test_a_change_of_length_code_or_day_is_seen(chats, kept, spoken, monkeypatch):
    rows, found = rows_of(chats), {}
    found["as it is"] = token_fingerprint(rows.train, spoken, "options")
    found["options"] = token_fingerprint(rows.train, spoken, "others")
    monkeypatch.setattr(sequences, "code_digest", lambda: "another")
    found["code"] = token_fingerprint(rows.train, spoken, "options")
    spoken.chat_template += "{# strftime_now #}"
    found["dated"] = token_fingerprint(rows.train, spoken, "options")

    class Tomorrow(sequences.date):
        @classmethod
        def today(cls):
            return cls(2999, 1, 1)

    monkeypatch.setattr(sequences, "date", Tomorrow)
    found["day"] = token_fingerprint(rows.train, spoken, "options")
    assert len(set(found.values())) == len(found), found
    assert tokens_of(rows, spoken, 100) != tokens_of(rows, spoken, 60)


def test_the_code_counts_with_the_versions_of_what_it_calls(monkeypatch):
    before = key.code_digest()
    monkeypatch.setattr(key, "version", lambda name: f"another {name}")
    assert key.code_digest.__wrapped__() != before


def test_rows_are_read_again_by_other_code(chats, kept, monkeypatch):
    rows_of(chats)
    monkeypatch.setattr(kept_rows, "code_digest", lambda: "another")
    monkeypatch.setattr(kept_rows, "read_file", never)
    with pytest.raises(AssertionError, match="made again"):
        rows_of(chats)


def test_what_was_said_is_said_again(chats, kept, monkeypatch):
    lines = chats.read_text().splitlines()
    chats.write_text("\n".join([lines[0], "", "{broken", '{"messages": []}', *lines[1:]]))
    first = rows_of(chats, max_bad_rows=2)
    assert len(first.bad.found) == 2
    monkeypatch.setattr(kept_rows, "read_file", never)
    second = rows_of(chats, max_bad_rows=2)
    assert second.notes == first.notes
    assert "1 blank line skipped" in " ".join(second.notes)
    assert second.bad.found == first.bad.found
    with pytest.raises(DataError, match="over 1 bad rows"):
        rows_of(chats, max_bad_rows=1)


def test_the_first_bad_row_still_stops(chats, kept):
    rows_of(chats, max_bad_rows=1)
    chats.write_text(chats.read_text() + "{broken\n")
    rows_of(chats, max_bad_rows=1)
    for _ in range(2):
        with pytest.raises(DataError, match="row 25, character 2: not JSON"):
            rows_of(chats)


@pytest.mark.parametrize("size", [0, 1000])
def test_what_was_cut_off_is_made_again(size, chats, kept, spoken):
    first = tokens_of(rows_of(chats), spoken)
    for file in kept.glob("*.arrow"):
        os.truncate(file, size)
    assert tokens_of(rows_of(chats), spoken) == first


def test_a_file_cut_between_two_batches_is_not_taken(tmp_path, kept):
    kept.mkdir(parents=True)
    place, table = kept / "a.arrow", pa.table({"number": range(5000)})
    kept_rows.write(place, [table], "a", {"notes": [], "bad": []})
    assert kept_rows._said(place) == {"notes": [], "bad": [], "rows": 5000}
    with pa.memory_map(str(place)) as file, pa.ipc.open_stream(file) as stream:
        schema, batches = stream.schema, [stream.read_next_batch() for _ in range(3)]
        cut = tmp_path / "b.arrow"
        with pa.OSFile(str(cut), "wb") as sink, pa.ipc.new_stream(sink, schema) as written:
            for batch in batches:
                written.write_batch(batch)
    assert kept_rows._said(cut) is None


def test_one_table_is_held_at_a_time(kept):
    kept.mkdir(parents=True)
    held, before = [], pa.total_allocated_bytes()

    def tables():
        for _ in range(40):
            yield pa.table({"text": ["x" * 1000] * 1000})
            held.append(pa.total_allocated_bytes() - before)

    kept_rows.write(kept / "a.arrow", tables(), "a", {})
    assert max(held) < 5e6 < (kept / "a.arrow").stat().st_size / 4


def test_a_full_disk_is_one_line(chats, kept, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left on device; make room"):
        rows_of(chats)
    assert not list(kept.iterdir()), "nothing is left behind"


def test_small_rows_stay_in_memory(chats, kept, spoken, monkeypatch):
    for module in (once, kept_rows):
        monkeypatch.setattr(module, "LARGE", 1 << 30)
    tokens_of(rows_of(chats), spoken)
    assert not kept.exists()


def test_two_workers_give_what_one_does(chats, kept, spoken, monkeypatch):
    alone = tokens_of(rows_of(chats, dataset_num_proc=1), spoken)
    for file in kept.iterdir():
        file.unlink()
    monkeypatch.setattr(once, "workers", lambda *_: 2)
    assert tokens_of(rows_of(chats), spoken) == alone
    assert len(list(kept.glob("*_of_00002.arrow"))) == 4


def test_bad_rows_of_a_kept_file_count_once(tmp_path, kept):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\nbroken\n" + json.dumps({"text": "b"}) + "\n")
    bad = BadRows(5)
    for _ in range(2):
        load_table(path, bad=bad)
    assert len(bad.found) == 1


def test_a_bad_row_that_was_left_out_before_stops_a_run_that_allows_none(kept):
    rows = [{"text": "a"}, {"text": ""}]
    keys = {"model_name_or_path": "x", "dataset_name": "y"}
    lenient, strict = (
        recipe_from_keywords("sft", **keys, max_bad_rows=most).stages[0] for most in (1, 0)
    )
    assert len(load_rows(lenient, train_dataset=rows).bad.found) == 1
    with pytest.raises(DataError, match=r"train_dataset, row 2, column 'text': the text is empty"):
        load_rows(strict, train_dataset=rows)
