"""What users thought of answers, as preferences: good beside bad ones, and better beside what was said.

A row has `prompt`, `completion` and `label`, as TRL's unpaired preferences, and may have `better`: what
the answer should have been. `toolkit chat` writes such rows, with the `adapter_digest` of who answered.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from toolkit.data.bad_rows import BadRows
from toolkit.data.columns import exact_rows, kind_of, tables_of, united
from toolkit.data.plans import TOOLS
from toolkit.data.rules import BrokenRule, parsed, text_of
from toolkit.errors import DataError

NEEDED = {"prompt", "completion", "label"}
IMITATED = (
    "label says which completions are good, and stage sft learns the bad ones too; stage dpo takes these "
    "rows as they are"
)
BETTER, DIGEST = "better", "adapter_digest"
ROLE_AND_WORDS = {"role", "content"}
PAIRED = {"chosen", "rejected", "answers", "ranks"}


@dataclass
class Counts:
    """What became of the feedback.

    Attributes:
        rows: all of it.
        corrected: rows that say what is better: a pair each.
        compared: prompts with good and bad answers.
        alone: rows that nothing is compared with.
        unrated: rows that neither rate the answer nor say what is better.
        repeated: rows that say the same again.
        contradictory: rows on answers to a prompt that are called both good and bad.
        adapter_digests: of who answered, as far as rows say it.
    """

    rows: int = 0
    corrected: int = 0
    compared: int = 0
    alone: int = 0
    unrated: int = 0
    repeated: int = 0
    contradictory: int = 0
    adapter_digests: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For a person."""
        found = (
            f"feedback in {self.rows:,} rows: {self.corrected:,} better answers, {self.compared:,} "
            "prompts with good and bad answers"
        )
        left_out = [
            (self.alone, "rows left out: nothing to compare with"),
            (self.unrated, "rows left out: no label"),
            (self.repeated, "rows merged with one that says the same"),
            (self.contradictory, "rows left out: one answer is called good and bad"),
        ]
        return "; ".join([found, *(f"{number:,} {what}" for number, what in left_out if number)])


@dataclass
class Asked:
    """The feedback on the answers to one prompt.

    Attributes:
        source: where its first row is from.
        number: that row.
        row: that row's prompt and tools.
        labels: by answer, as JSON, what it was called, in order.
        better: answer and what is better, as JSON.
    """

    source: str
    number: int
    row: dict[str, Any]
    labels: dict[str, list[bool]] = field(default_factory=dict)
    better: dict[tuple[str, str], None] = field(default_factory=dict)


def is_feedback(columns: list[str]) -> bool:
    """Whether rows with these columns say of single answers whether they are good."""
    return set(columns) >= NEEDED and not PAIRED & set(columns)


def rates(table: Dataset) -> bool:
    """Whether `label` is true or false, and not a class."""
    return getattr(table.features["label"], "dtype", None) == "bool"


def as_preferences(table: Dataset, origin: str, bad: BadRows) -> tuple[Dataset, Counts]:
    """Feedback as ranked answers: `prompt`, `answers` and `ranks`.

    Args:
        table: rows of feedback, with `source` and `row`.
        origin: what the data set is called.
        bad: takes rows that break a rule.

    Returns:
        The rows, each at the place of the first feedback on its prompt; and what became of all.

    Raises:
        DataError: if too many rows are bad, or nothing can be compared.
    """
    counts = Counts(rows=len(table))
    asked: dict[str, Asked] = {}
    for row in exact_rows(table):
        try:
            note(row, asked, counts)
        except BrokenRule as error:
            bad.add(row["source"], row["row"], f"{row['source']}, row {row['row']}, {error}")
    by_source: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for each in asked.values():
        rows = [(each.number, each.row | ranked) for ranked in compared(each, counts)]
        by_source.setdefault(each.source, []).extend(rows)
    tables = [table for source, rows in by_source.items() for table in tables_of(rows, source)]
    if not tables:
        raise DataError(f"{origin}: nothing can be compared: {counts.line()}")
    return Dataset(united(tables, origin)), counts  # type: ignore[arg-type]


def note(row: Mapping[str, Any], asked: dict[str, Asked], counts: Counts) -> None:
    """Put one row of feedback to the others on its prompt.

    Raises:
        BrokenRule: if it is none.
    """
    label, better = row["label"], row.get(BETTER)
    if label is not None and not isinstance(label, bool):
        raise BrokenRule("label", f"expected true or false, found {kind_of(label)}")
    answer = words_of(row["completion"], "completion")
    if better is not None:
        better = text_of(better, BETTER)
    prompt = row["prompt"]
    if not isinstance(prompt, str | list) or not prompt:
        raise BrokenRule("prompt", f"expected text or messages, found {kind_of(prompt)}")
    if (digest := row.get(DIGEST)) and digest not in counts.adapter_digests:
        counts.adapter_digests.append(str(digest))
    own = {"prompt": prompt} | ({TOOLS: row[TOOLS]} if row.get(TOOLS) else {})
    name = json.dumps(own, sort_keys=True)
    place = asked.setdefault(name, Asked(row["source"], row["row"], own))
    said = json.dumps(answer, sort_keys=True)
    if label is None and better is None:
        counts.unrated += 1
    if label is not None:
        place.labels.setdefault(said, []).append(label)
    if better is not None:
        pair = (said, json.dumps(better))
        counts.repeated += pair in place.better
        if pair[0] != pair[1]:
            place.better[pair] = None


def words_of(completion: Any, column: str) -> Any:
    """An answer; of one plain turn of the assistant, its text.

    Raises:
        BrokenRule: if it is neither text nor messages.
    """
    if isinstance(completion, str):
        return text_of(completion, column, empty=True)
    completion = parsed(completion, column)
    if not isinstance(completion, list) or not completion:
        raise BrokenRule(column, f"expected text or messages, found {kind_of(completion)}")
    turn = completion[0]
    is_plain = len(completion) == 1 and isinstance(turn, Mapping) and set(turn) == ROLE_AND_WORDS
    return turn["content"] if is_plain and isinstance(turn["content"], str) else completion


def compared(asked: Asked, counts: Counts) -> list[dict[str, Any]]:
    """What the feedback on one prompt lets one compare, as `answers` and `ranks`."""
    pairs = [
        {"answers": [json.loads(better), json.loads(said)], "ranks": [1, 2]}
        for said, better in asked.better
    ]
    counts.corrected += len(pairs)
    sides: dict[bool, list[str]] = {True: [], False: []}
    alone = 0
    corrected = {said for said, _ in asked.better}
    for said, labels in asked.labels.items():
        if len(set(labels)) > 1:
            counts.contradictory += len(labels)
            continue
        counts.repeated += len(labels) - 1
        sides[labels[0]].append(said)
        alone += said not in corrected
    good, bad = sides[True], sides[False]
    if not (good and bad):
        counts.alone += alone
        return pairs
    counts.compared += 1
    ranks = [1] * len(good) + [2] * len(bad)
    return [*pairs, {"answers": [json.loads(each) for each in (*good, *bad)], "ranks": ranks}]
