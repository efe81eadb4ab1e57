"""Documents laid end to end and cut into blocks of one length, with their boundaries kept."""

from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from toolkit.data.once import mapped
from toolkit.data.sequences import IGNORED, token_fingerprint

COLUMNS = ("input_ids", "labels", "position_ids")
DOCUMENTS_AT_A_TIME = 1000


def blocks_of(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, num_proc: int | None
) -> Dataset:
    """Documents as blocks of `max_length` tokens, none of them lost.

    Each document ends with the tokenizer's stop token. Its positions start at 0, from which
    transformers sees that it attends to itself alone; and no label asks for its first token, which
    nothing before it foretells. A document that does not end with its block goes on in the next, as
    one of its own. The last block of every thousand documents is filled with stop tokens that
    carry no loss.

    Args:
        rows: with a column `text`.
        tokenizer: with a stop token.
        max_length: of a block, in tokens.
        num_proc: how many processes share the work.

    Returns:
        `input_ids`, `labels` and `position_ids`, each of shape (max_length,).
    """
    return mapped(
        rows,
        _blocks,
        batched=True,
        batch_size=DOCUMENTS_AT_A_TIME,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        features=Features({name: List(Value("int32")) for name in COLUMNS}),
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        fingerprint=token_fingerprint(rows, tokenizer, ("blocks", max_length)),
        desc="packing",
    )


def _blocks(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    stop = tokenizer.eos_token_id
    documents = [
        [*ids, stop] for ids in tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
    ]
    flat = np.concatenate(documents)
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    filling = -len(flat) % max_length
    # each filling token is a document of its own
    starts = np.concatenate([starts, np.arange(len(flat), len(flat) + filling)])
    ids = np.concatenate([flat, np.full(filling, stop)])
    begins = np.zeros(len(ids), bool)
    begins[starts] = begins[::max_length] = True
    at = np.arange(len(ids))
    positions = at - np.maximum.accumulate(np.where(begins, at, 0))
    labels = np.where(begins, IGNORED, ids)
    columns = zip(COLUMNS, (ids, labels, positions), strict=True)
    return {name: list(values.reshape(-1, max_length)) for name, values in columns}
