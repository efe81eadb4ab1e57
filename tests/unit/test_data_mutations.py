"""Whatever a data file holds: it is read, or refused in one line, for every kind of stage.

What is read is checked against a slow reference: the labels are the assistant's text and its stop.
"""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_bad_rows import PURPOSES, read, row_of
from test_data_chat_oracle import verify
from transformers import PreTrainedTokenizerFast

from tests import tiny
from toolkit.data.bad_rows import BadRows
from toolkit.data.sequences import tokenize
from toolkit.errors import DataError
from toolkit.models import chatml

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=2000)

TEXTS = st.one_of(
    st.sampled_from([
        "a", "", " ", "4", "<|im_end|>", "<|im_start|>assistant\n", "<|im_", "end|>", "\0", "\ud83d", "é",
        "\u2028", "[1", "[]", '[{"role": "user", "content": "a"}]', "{}", "null", "<|endoftext|>", "x" * 300,
    ]),
    st.text(max_size=8),
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.sampled_from([10**400, 2**63, 1e308])
)  # fmt: skip
ROLES = ["user", "assistant", "system", "tool", "developer", "usr", "human", "gpt", "", None, 5]
BLOCKS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": TEXTS | LEAVES})
CALLS = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXTS, "arguments": LEAVES})}
)  # fmt: skip
MESSAGE = st.one_of(
    *(st.fixed_dictionaries({"role": st.just(r), "content": TEXTS}) for r in ("user", "assistant") * 3),
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": LEAVES | st.lists(BLOCKS, max_size=2)},
        optional={"tool_calls": st.lists(CALLS | LEAVES, max_size=2), "name": LEAVES, "reasoning_content": TEXTS},
    ),
    st.fixed_dictionaries({"from": st.sampled_from(ROLES), "value": LEAVES}),
    LEAVES,
)  # fmt: skip
GOOD = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
MESSAGES = st.one_of(st.lists(MESSAGE, max_size=4), st.just(GOOD), LEAVES)
COLUMNS = [
    "messages", "prompt", "completion", "text", "chosen", "rejected", "answers", "ranks", "tools", "system",
    "conversations", "instruction", "output", "question", "answer", "history", "source", "row", "dataset",
    "__broken__", "label", "",
]  # fmt: skip
RANKED = st.lists(st.lists(MESSAGE, max_size=2) | TEXTS, max_size=3)
ROW = st.one_of(
    st.dictionaries(st.sampled_from(COLUMNS), MESSAGES | RANKED, min_size=1, max_size=4),
    st.fixed_dictionaries({"messages": MESSAGES}),
    st.fixed_dictionaries({"prompt": MESSAGES, "completion": MESSAGES}),
    st.fixed_dictionaries({"prompt": MESSAGES | TEXTS, "chosen": MESSAGES | TEXTS, "rejected": MESSAGES | TEXTS}),
    st.fixed_dictionaries({"prompt": MESSAGES | TEXTS, "answers": RANKED, "ranks": st.lists(st.integers(0, 3) | LEAVES, max_size=3)}),
    *(st.just(row_of(purpose, GOOD[:1])) for purpose in PURPOSES),
    LEAVES,
)  # fmt: skip
ROWS = st.lists(ROW, min_size=1, max_size=4)
# One row again and again makes a file of one format, with one fault in its midst.
SAME = st.tuples(st.sampled_from(PURPOSES), MESSAGES).map(
    lambda drawn: [row_of(drawn[0], GOOD[:1]), row_of(*drawn), row_of(drawn[0], GOOD[:1])]
)
LINE = json.dumps({"messages": GOOD}).encode()


@st.composite
def mutated(draw) -> bytes:
    """Lines of JSON, with bytes taken out, put in or changed."""
    content = bytearray(b"\n".join([LINE] * draw(st.integers(1, 3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        put = draw(st.sampled_from([b"", b'"', b"{", b"}", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf",
                                    b"\\", b",", b"[", b"]", b":", b"1e999", b"NaN", b"\\ud83d", b"\xe2"]))  # fmt: skip
        content[at : at + draw(st.integers(0, 3))] = put
    return bytes(content)


FILES = st.one_of(st.binary(max_size=80), mutated())
SUFFIXES = st.sampled_from(
    [".jsonl"] * 6 + [".json", ".csv", ".tsv", ".jsonl.gz", ".parquet", ".txt"]
)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """Letters, and the ChatML of which the reference knows how a turn ends."""
    tokenizer = tiny.tokenizer()
    chatml.prepare_tokenizer(tokenizer, conversational=True)
    return tokenizer


def check(path: Path, purpose: str, words, most: int) -> None:
    """It is read, or refused in one line that names the file."""
    refused, rows, count = None, None, 0
    try:
        rows, count = read(path, purpose, words, most)
    except DataError as error:
        refused = str(error)
    if rows is None:
        assert refused
        assert "\n" not in refused
        assert "\x1b" not in refused
        return
    assert count > 0
    assert len(rows.bad.found) <= most
    if purpose == "sft" and rows.format == "messages":
        made = tokenize(
            rows.train, words, format="messages", max_length=None, bad=BadRows(most=9)
        ).dataset
        numbers = made["row"][:]
        for row in rows.train:
            of_row = [made[at] for at, number in enumerate(numbers) if number == row["row"]]
            if of_row:
                verify(words, "qwen2_5", row["messages"], row.get("tools"), of_row)


def write(path: Path, rows: list) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@FEW
@given(
    content=FILES, suffix=SUFFIXES, purpose=st.sampled_from(PURPOSES), most=st.sampled_from([0, 9])
)
def test_any_bytes(tmp_path, words, content, suffix, purpose, most):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    check(path, purpose, words, most)


@FEW
@given(rows=ROWS | SAME, purpose=st.sampled_from(PURPOSES), most=st.sampled_from([0, 9]))
def test_any_rows(tmp_path, words, rows, purpose, most):
    write(tmp_path / "rows.jsonl", rows)
    check(tmp_path / "rows.jsonl", purpose, words, most)


@pytest.mark.slow
@MANY
@given(content=FILES, suffix=SUFFIXES, most=st.sampled_from([0, 9]))
def test_many_bytes(tmp_path, words, content, suffix, most):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    for purpose in PURPOSES:
        check(path, purpose, words, most)


@pytest.mark.slow
@MANY
@given(rows=ROWS | SAME, most=st.sampled_from([0, 9]))
def test_many_rows(tmp_path, words, rows, most):
    write(tmp_path / "rows.jsonl", rows)
    for purpose in PURPOSES:
        check(tmp_path / "rows.jsonl", purpose, words, most)
