"""What exactly is trained: sequences with their trained tokens coloured, and as plain objects."""

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from toolkit.data.chat_tokens import IGNORED
from toolkit.data.sequence_report import SequenceReport, readable
from toolkit.data.sequences import Sequences

TRAINED, SPECIAL, CONTEXT = "bold green", "magenta", "dim"
OPEN, CLOSE = "⟦", "⟧"
# A row must not be able to move the cursor, clear the screen or hide its own text.
VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡"}
VISIBLE |= {code: f"<{code:02x}>" for code in range(0x80, 0xA0)}
VISIBLE |= {ord("\n"): "⏎\n", ord("\t"): "\t"}


def render(
    sequence: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, colour: bool | None = None
) -> Text:
    """One sequence as a person reads it: context dim, trained tokens in colour, newlines marked.

    Args:
        sequence: `input_ids`, `labels`, and `source` and `row` where known.
        tokenizer: the one that made it.
        colour: False to enclose trained tokens in ⟦ ⟧; None to do so where there is no colour.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    ids, labels = sequence["input_ids"], sequence["labels"]
    trained = sum(label != IGNORED for label in labels)
    text = Text()
    where = f"{sequence['source']}, row {sequence['row']}" if "source" in sequence else "sequence"
    text.append(f"── {where} · ", "bold")
    text.append(f"{len(ids):,} tokens, {trained:,} trained ({trained / max(1, len(ids)):.0%})\n")
    special = set(tokenizer.all_special_ids)
    for start, end, is_trained in _runs(labels):
        style = TRAINED if is_trained else CONTEXT
        text.append(OPEN if is_trained and not colour else "")
        for is_special, run in groupby(range(start, end), lambda at: ids[at] in special):
            at = list(run)
            words = _decode(tokenizer, ids, at[0], at[-1] + 1).translate(VISIBLE)
            text.append(words, f"{style} {SPECIAL}" if is_special else style)
        text.append(CLOSE if is_trained and not colour else "")
    if not text.plain.endswith("\n"):
        text.append("\n")
    return text


def to_json(sequence: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One sequence as plain data.

    Args:
        sequence: `input_ids`, `labels`, `source` and `row`.
        tokenizer: the one that made it.

    Returns:
        `source`, `row`, `input_ids`, `labels`, `text`, and `spans`: of each run of trained tokens
        the first index (`start`), the one after the last (`end`), and the `text`.
    """
    ids, labels = list(sequence["input_ids"]), list(sequence["labels"])
    return {
        "source": sequence.get("source"),
        "row": sequence.get("row"),
        "input_ids": ids,
        "labels": labels,
        "text": _decode(tokenizer, ids, 0, len(ids)),
        "spans": [
            {"start": start, "end": end, "text": _decode(tokenizer, ids, start, end)}
            for start, end, is_trained in _runs(labels)
            if is_trained
        ],
    }


def marked(
    sequence: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, most: int
) -> dict[str, Any]:
    """The beginning of a sequence in runs of trained and of other tokens, for the manifest.

    Args:
        sequence: `input_ids`, `labels`, and `source` and `row` where known.
        tokenizer: the one that made it.
        most: how many tokens are kept.

    Returns:
        `source`, `row`, `tokens` and `trained` of the whole, and `spans`: each run's text, and
        whether it is trained.
    """
    ids, labels = list(sequence["input_ids"]), list(sequence["labels"])
    return {
        "source": sequence.get("source"),
        "row": sequence.get("row"),
        "tokens": len(ids),
        "trained": sum(label != IGNORED for label in labels),
        "spans": [
            (_decode(tokenizer, ids, start, end), is_trained)
            for start, end, is_trained in _runs(labels[:most])
        ],
    }


def statistics(splits: Mapping[str, Sequences]) -> Table:
    """A table of every data set: rows, sequences, share trained, rows split, cut and lost.

    Args:
        splits: what is trained and what is held out, by name.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", width=80)
    table.add_column("data", overflow="fold", min_width=12, ratio=1)
    for name in ("rows", "sequences", "tokens", "trained", "split", "cut", "no stop", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    for split, found in splits.items():
        table.add_row(split, *_cells(found.report))
        for name, report in found.by_dataset.items():
            table.add_row(Text(f"  {name}"), *_cells(report), style=CONTEXT)
    modes = dict.fromkeys(found.report.mode for found in splits.values())
    turns = any(found.report.turns_lost for found in splits.values())
    table.caption = f"trained: {', '.join(modes)}{'; lost: rows + turns of others' * turns}"
    table.caption_justify = "left"
    return table


def _cells(report: SequenceReport) -> list[str]:
    share = report.trained_tokens / max(1, report.tokens)
    turns = f"+{readable(report.turns_lost)}" if report.turns_lost else ""
    first = (report.rows, report.sequences, report.tokens)
    counts = (report.rows_split, report.rows_cut, report.rows_stop_lost)
    return [
        *map(readable, first),
        f"{share:.1%}",
        *map(readable, counts),
        f"{readable(report.rows_lost)}{turns}",
    ]


def _runs(labels: Sequence[int]) -> list[tuple[int, int, bool]]:
    """The sequence in runs of trained and of other tokens: start, end, whether trained."""
    runs, start = [], 0
    for is_trained, run in groupby(labels, lambda label: label != IGNORED):
        end = start + sum(1 for _ in run)
        runs.append((start, end, is_trained))
        start = end
    return runs


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int, end: int) -> str:
    """The text of some tokens, with the space before the first that some tokenizers leave out.

    A decoder may strip what it takes for the start of a text, so the tokens are decoded after one
    token of their context, and that one's text is taken away.
    """
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    words = str(tokenizer.decode(list(ids[start:end]), **options))
    if start == 0:
        return words
    before = str(tokenizer.decode(list(ids[start - 1 : start]), **options))
    both = str(tokenizer.decode(list(ids[start - 1 : end]), **options))
    return both.removeprefix(before) if both.startswith(before) else words
