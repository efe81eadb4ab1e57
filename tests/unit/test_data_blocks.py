"""Blocks of documents: no token is lost, and none sees or foretells another document's."""

import pytest
from datasets import Dataset

from tests import tiny
from toolkit.data.blocks import blocks_of

TEXTS = ["abcdefg", "x", "hello there, this is one document", "", "yz"] * 5


@pytest.fixture
def blocks():
    return blocks_of(Dataset.from_dict({"text": TEXTS}), tiny.tokenizer(), 16, num_proc=None)


def test_every_token_is_there_in_order_and_each_document_ends(blocks):
    words = tiny.tokenizer()
    expected = [i for text in TEXTS for i in [*words(text)["input_ids"], words.eos_token_id]]
    found = [i for row in blocks for i in row["input_ids"]]
    assert all(len(row["input_ids"]) == 16 for row in blocks)
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {words.eos_token_id}
    assert len(found) - len(expected) < 16


def test_positions_start_anew_and_no_label_asks_for_a_first_token(blocks):
    words = tiny.tokenizer()
    after_an_end = True
    for row in blocks:
        for at, (token, label, position) in enumerate(
            zip(row["input_ids"], row["labels"], row["position_ids"], strict=True)
        ):
            first = after_an_end or at == 0
            assert (position == 0) is first
            assert label == (-100 if first else token)
            after_an_end = token == words.eos_token_id
