"""From ranked answers to pairs of token ids, weighted so that each prompt counts once.

Of a ranking, every two answers of different rank are a pair (InstructGPT, §3.5). What follows the
prompt's tokens is what inference would have to produce, as in supervised training, so the policy,
the reward model and DPO see the same tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from toolkit.data.bad_rows import BROKEN, BadRows
from toolkit.data.chat_answers import Ids, Spoken, answered_messages, answered_texts, spoken
from toolkit.data.columns import exact_columns
from toolkit.data.control_tokens import check_spoken
from toolkit.data.once import mapped
from toolkit.data.pair_report import PairReport, pair_report, why_no_pair
from toolkit.data.plans import TOOLS, is_conversational
from toolkit.data.rules import says_something
from toolkit.data.sequences import token_fingerprint
from toolkit.errors import DataError

SIDES = ("prompt_ids", "chosen_ids", "rejected_ids")
ONCE = ("answers", "empty", "tied", "equal")
"""What is counted of a row; its first pair, or what stands for it if it has none, says so."""
LENGTHS = ("prompt_length", "chosen_length", "rejected_length")
KINDS = {
    **{name: List(Value("int32")) for name in SIDES},
    "source": Value("string"),
    "row": Value("int64"),
    "prompt_key": Value("string"),
    "left_out": Value("string"),
    BROKEN: Value("string"),
    **{name: Value("int64") for name in ("first", *ONCE, *LENGTHS)},
}
ROWS_AT_A_TIME = 250


@dataclass(frozen=True)
class Pairs:
    """What is compared, and the account of how it came about.

    Attributes:
        dataset: `prompt_ids`, `chosen_ids` and `rejected_ids`, the latter two with the stop token
            and without the prompt; `weight`, one over the pairs of the prompt; `prompt_index`,
            which prompt it is, from 0; `source` and `row`.
        lengths: of the chosen and the rejected completion, in tokens; shape (pairs, 2).
        report: the account.
    """

    dataset: Dataset
    lengths: np.ndarray
    report: PairReport


def tokenize_pairs(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    num_proc: int | None = None,
    bad: BadRows | None = None,
) -> Pairs:
    """Every two answers of different rank, as token ids.

    Args:
        rows: as `to_standard` gives them for preferences.
        tokenizer: with the template and the stop token that training needs.
        max_length: a pair with more tokens on one side, prompt included, is left out as TRL does;
            none is cut. None to keep all.
        num_proc: processes that share the work; the result does not depend on it.
        bad: takes rows of an answer whose tokens cannot be exact; without it, the first of them is
            an error.

    Returns:
        The pairs in the order of their rows. What makes no pair is counted and named in the report.

    Raises:
        DataError: for an answer whose tokens cannot be exact, with its file and row, and if no pair
            would be left.
    """
    bad = bad or BadRows()
    given = {"tokenizer": tokenizer, "is_chat": is_conversational(rows, "ranked")}
    found = mapped(
        rows.with_format("arrow"),
        _encode,
        batched=True,
        batch_size=ROWS_AT_A_TIME,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        features=Features(KINDS),
        fn_kwargs={**given, "bad": bad},
        fingerprint=token_fingerprint(rows, tokenizer, "pairs"),
        desc="tokenizing",
    )
    found = bad.taken_from(found.with_format(None))
    counts = _counts(found, max_length)
    report = pair_report(counts, max_length=max_length)
    kept = counts["kept"]
    if not kept.any():
        raise DataError(why_no_pair(counts, report))
    found = found.remove_columns(
        [name for name in found.column_names if name not in (*SIDES, "source", "row")]
    )
    weight, prompt_index = (pa.array(counts[name]) for name in ("weight", "prompt_index"))
    found = found.add_column("weight", weight)  # type: ignore[arg-type]
    found = found.add_column("prompt_index", prompt_index)  # type: ignore[arg-type]
    if not kept.all():
        found = found.select(np.flatnonzero(kept))
    lengths = np.stack([counts[name][kept] for name in LENGTHS[1:]], axis=1)
    return Pairs(found, lengths, report)


def _encode(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, is_chat: bool, bad: BadRows
) -> dict[str, list[Any]]:
    """The pairs of some rows, and for each row at least one entry that says what was counted.

    What is wrong with a row stands in `BROKEN`, or is raised.
    """
    batch = exact_columns(table)
    rows = [{k: values[at] for k, values in batch.items()} for at in range(len(table))]
    found: dict[str, list[Any]] = {name: [] for name in KINDS}
    for row, one in zip(rows, (_chats if is_chat else _texts)(tokenizer, rows), strict=True):
        if isinstance(one, DataError) and bad.stops_at_first:
            bad.add(row["source"], row["row"], f"{row['source']}, row {row['row']}: {one}")
        broken = str(one) if isinstance(one, DataError) else None
        before, answers, lost = ([], [], []) if isinstance(one, DataError) else one
        pairs, tied, equal = _pairs_of(answers, row["ranks"])
        place = {"source": row["source"], "row": row["row"], "left_out": ", ".join(lost)}
        place[BROKEN] = broken
        place["prompt_key"] = blake2b(
            np.array(before, np.int64).tobytes(), digest_size=12
        ).hexdigest()
        empty = sum(not _is_said(answer) for answer in row["answers"])
        once = dict(zip(ONCE, (len(answers), empty, tied, equal), strict=True))
        for index, (chosen, rejected) in enumerate(pairs or [([], [])]):
            sides = (before if pairs else [], chosen, rejected)
            counted = once if index == 0 else dict.fromkeys(ONCE, 0)
            entry = {**place, **counted, "first": int(index == 0)}
            entry |= dict(zip(SIDES, sides, strict=True))
            entry |= dict(zip(LENGTHS, map(len, sides), strict=True))
            for name, value in entry.items():
                found[name].append(value)
    return found


Encoded = tuple[Ids, list[Ids], list[str]]  # prompt, answers, what the template leaves out


def _texts(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> list[Any]:
    """Each row as tokens, or why it cannot be."""
    found: list[Encoded | DataError] = []
    for row in rows:
        try:
            found.append((*answered_texts(tokenizer, row["prompt"], row["answers"]), []))
        except DataError as error:
            found.append(error)
    return found


def _chats(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> list[Any]:
    """Each row as tokens, or why it cannot be."""
    said: list[Spoken | DataError] = []
    for row in rows:
        try:
            check_spoken(tokenizer, row["prompt"], row.get(TOOLS))
            answers = [messages[0] for messages in row["answers"]]
            said.append(spoken(tokenizer, row["prompt"], answers, row.get(TOOLS)))
        except DataError as error:
            said.append(error)
    whole = [one for one in said if isinstance(one, Spoken)]
    try:
        encoded: list[Any] = list(answered_messages(tokenizer, whole))
    except DataError:  # one of them; all at once is faster
        encoded = [_alone(tokenizer, one) for one in whole]
    remaining = iter(encoded)
    found: list[Encoded | DataError] = []
    for one in said:
        if isinstance(one, DataError):
            found.append(one)
            continue
        tokens = next(remaining)
        found.append(tokens if isinstance(tokens, DataError) else (*tokens, one.left_out))
    return found


def _alone(tokenizer: PreTrainedTokenizerBase, said: Spoken) -> Any:
    try:
        return answered_messages(tokenizer, [said])[0]
    except DataError as error:
        return error


def _pairs_of(answers: list[Ids], ranks: list[float]) -> tuple[list[tuple[Ids, Ids]], int, int]:
    """Chosen and rejected of every pair; how many more pairs are ties, and how many the same twice."""
    pairs, tied, equal = [], 0, 0
    for one, other in combinations(range(len(answers)), 2):
        if ranks[one] == ranks[other]:
            tied += 1
        elif answers[one] == answers[other]:
            equal += 1
        else:
            better, worse = (one, other) if ranks[one] < ranks[other] else (other, one)
            pairs.append((answers[better], answers[worse]))
    return pairs, tied, equal


def _is_said(answer: str | list[Mapping[str, Any]]) -> bool:
    return bool(answer.strip()) if isinstance(answer, str) else says_something(answer[0])


def _counts(found: Dataset, max_length: int | None) -> dict[str, np.ndarray]:
    """What is known of each entry: which are kept, their prompt and their weight."""
    names = [name for name in KINDS if name not in (*SIDES, BROKEN)]
    table: Any = found.select_columns(names).with_format("arrow")[:]
    counts = {name: table.column(name).to_numpy() for name in names}
    longer = np.maximum(counts["chosen_length"], counts["rejected_length"])
    longest = counts["prompt_length"] + longer
    is_pair = longer > 0
    limit = np.iinfo(np.int64).max if max_length is None else max_length
    counts["longest"], counts["is_pair"] = longest, is_pair
    counts["kept"] = kept = is_pair & (longest <= limit)
    order: dict[str, int] = {}
    for key in counts["prompt_key"][kept]:
        order.setdefault(key, len(order))
    index = np.array([order.get(key, -1) for key in counts["prompt_key"]], np.int64)
    number = np.bincount(index[kept], minlength=len(order) + 1)
    counts["prompt_index"] = index
    counts["weight"] = np.where(kept, 1.0 / np.maximum(1, number[index]), 0.0)
    return counts
