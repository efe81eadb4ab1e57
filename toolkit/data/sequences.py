"""From rows to `input_ids` and `labels`, cut to `max_length`, with an account of every row."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import completion_sequences, text_sequence, training_sequences
from toolkit.data.chat_tokens import IGNORED
from toolkit.data.files import PLACE, exact_columns
from toolkit.data.formats import TOOLS, code_digest
from toolkit.errors import DataError

NAMED_ROWS = 5  # how many rows a report names
COUNTED = ("length", "part", "first_trained", "last_trained", "kept_trained")
MODES = {"messages": "the assistant's turns", "prompt_completion": "the completion"}


@dataclass(frozen=True)
class SequenceReport:
    """What became of the rows.

    Attributes:
        mode: what carries loss: "the assistant's turns", "the completion" or "every token".
        max_length: where sequences were cut; None if nowhere.
        rows: rows that were read.
        sequences: what is trained on.
        tokens: their tokens.
        trained_tokens: those that carry loss.
        longest: tokens of the longest sequence, before the cut.
        rows_split: rows that became one sequence per assistant turn.
        rows_cut: rows with a sequence over `max_length`.
        rows_stop_lost: rows that are trained without their last trained token, the stop token.
        rows_lost: rows with no trained token left, which are not trained.
        turns_lost: sequences of other rows with no trained token left, which are not trained.
        rows_single: rows of which one token only is trained.
        named: the first rows of each such count, by its name.
    """

    mode: str
    max_length: int | None
    rows: int
    sequences: int
    tokens: int
    trained_tokens: int
    longest: int
    rows_split: int
    rows_cut: int
    rows_stop_lost: int
    rows_lost: int
    turns_lost: int
    rows_single: int
    named: Mapping[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report in words: what is trained, then one line for everything that was changed."""
        share = self.trained_tokens / self.tokens if self.tokens else 0.0
        lines = [
            f"{self.rows:,} rows → {self.sequences:,} sequences, {_readable(self.tokens)} tokens, "
            f"{share:.0%} trained: {self.mode}; the longest has {self.longest:,}"
        ]
        if self.rows_split:
            lines.append(
                f"{self._counted('rows_split')} split, one sequence per assistant turn: the template "
                "renders earlier turns otherwise than when they were generated"
            )
        if self.rows_cut:
            lost = f"; {self.rows_stop_lost:,} of them lose their stop token"
            lines.append(
                f"{self._counted('rows_cut')} cut at max_length {self.max_length}"
                f"{lost if self.rows_stop_lost else ''}"
            )
        if self.rows_lost:
            lines.append(
                f"{self._counted('rows_lost')} lost, not trained: no trained token within max_length "
                f"{self.max_length}"
            )
        if self.turns_lost:
            lines.append(
                f"{self._counted('turns_lost', 'turns')} lost, not trained: their prompt alone fills "
                f"max_length {self.max_length}"
            )
        if self.rows_single:
            lines.append(f"{self._counted('rows_single')} train one token only")
        return lines

    def _counted(self, name: str, what: str = "rows") -> str:
        """A count with the first rows that it counts."""
        count, rows = getattr(self, name), self.named.get(name, [])
        more, label = ", …" if count > len(rows) else "", "row" if len(rows) == 1 else "rows"
        return f"{count:,} {what if count != 1 else what[:-1]} ({label} {', '.join(rows)}{more})"


@dataclass(frozen=True)
class Sequences:
    """What is trained, and the account of how it came about.

    Attributes:
        dataset: `input_ids` and `labels`, the token itself or -100; `source` and `row`.
        report: the account.
        by_source: the account of each data set of a mixture; empty if there is only one.
    """

    dataset: Dataset
    report: SequenceReport
    by_source: Mapping[str, SequenceReport] = field(default_factory=dict)


def tokenize(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str,
    max_length: int | None,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = True,
    dataset_text_field: str = "text",
    num_proc: int | None = None,
) -> Sequences:
    """Token ids and labels of checked rows.

    Args:
        rows: as `to_standard` gives them.
        tokenizer: with the template and the stop token that training needs.
        format: "messages", "prompt_completion" or "text".
        max_length: sequences are cut after so many tokens; None to cut none.
        completion_only_loss: False to train the prompt too.
        assistant_only_loss: False to train every token of `messages`.
        dataset_text_field: the column of `text` rows, if not `text`.
        num_proc: processes that share the work; the result does not depend on it.

    Returns:
        The sequences in the order of their rows. One without a trained token after the cut is left
        out, counted and named in the report.

    Raises:
        DataError: for a row whose mask cannot be exact, with its file and row, and if no sequence
            would be left.
    """
    whole = (format == "messages" and not assistant_only_loss) or (
        format == "prompt_completion" and completion_only_loss is False
    )
    text_field = dataset_text_field if dataset_text_field in rows.column_names else "text"
    tokens = List(Value("int32"))
    kinds = {
        "input_ids": tokens,
        "labels": tokens,
        "source": Value("string"),
        "row": Value("int64"),
    }
    found = rows.with_format("arrow").map(
        _encode,
        batched=True,
        batch_size=250,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        features=Features(kinds | {name: Value("int64") for name in COUNTED}),
        fn_kwargs={
            "tokenizer": tokenizer,
            "format": format,
            "whole": whole,
            "max_length": max_length,
            "text_field": text_field,
        },
        new_fingerprint=_fingerprint(rows, tokenizer, format, whole, max_length, text_field),
        desc="tokenizing",
    )
    found = found.with_format(None)
    counts = {name: np.asarray(found.with_format("numpy")[name][:]) for name in (*COUNTED, "row")}
    sources = np.asarray(found["source"][:])
    mode = "every token" if whole else MODES.get(format, "every token")
    report = _report(counts, sources, mode, max_length)
    kept = counts["kept_trained"] > 0
    if not kept.any():
        raise _nothing_left(sources, counts, max_length)
    names = list(dict.fromkeys(sources.tolist()))
    by_source = {
        name: _report({k: v[sources == name] for k, v in counts.items()}, sources, mode, max_length)
        for name in (names if len(names) > 1 else ())
    }
    if not kept.all():
        found = found.select(np.flatnonzero(kept))
    return Sequences(found.remove_columns(list(COUNTED)), report, by_source)


def _encode(
    table: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    format: str,
    whole: bool,
    max_length: int | None,
    text_field: str,
) -> dict[str, list[Any]]:
    """The sequences of some rows, cut, with what the report counts."""
    batch = exact_columns(table)
    found: dict[str, list[Any]] = {k: [] for k in ("input_ids", "labels", *PLACE, *COUNTED)}
    for index in range(len(batch["row"])):
        row = {name: values[index] for name, values in batch.items()}
        try:
            sequences = _sequences(row, tokenizer, format, whole, text_field)
        except DataError as error:
            raise DataError(f"{row['source']}, row {row['row']}: {error}") from error
        for part, sequence in enumerate(sequences):
            ids, labels = sequence["input_ids"], sequence["labels"]
            trained = [at for at, label in enumerate(labels) if label != IGNORED]
            first, last = (trained[0], trained[-1]) if trained else (len(ids), len(ids))
            kept = sum(at < (max_length or len(ids)) for at in trained)
            values = (ids[:max_length], labels[:max_length], row["source"], row["row"],
                      len(ids), part, first, last, kept)  # fmt: skip
            for name, value in zip(found, values, strict=True):
                found[name].append(value)
    return found


def _sequences(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    format: str,
    whole: bool,
    text_field: str,
) -> list[dict[str, list[int]]]:
    if format == "text":
        return [text_sequence(tokenizer, row[text_field])]
    tools = row.get(TOOLS)
    if format == "messages":
        messages = row["messages"]
        if not whole:
            return training_sequences(tokenizer, messages, tools=tools)
        return [_every_token(tokenizer, messages, tools)]
    prompt, completion = row["prompt"], row["completion"]
    if not whole:
        return completion_sequences(tokenizer, prompt, completion, tools=tools)
    if isinstance(prompt, list):
        return [_every_token(tokenizer, [*prompt, *completion], tools)]
    (sequence,) = completion_sequences(tokenizer, prompt, completion)
    return [{"input_ids": sequence["input_ids"], "labels": list(sequence["input_ids"])}]


def _every_token(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any
) -> dict[str, list[int]]:
    """A conversation as its template renders it, all of it trained."""
    try:
        encoded = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True)
    except Exception as error:  # a template may raise anything
        words = " ".join(str(error).split())
        raise DataError(f"the chat template cannot render it: {words[:300]}") from error
    ids = list(encoded["input_ids"])  # type: ignore[index]
    return {"input_ids": ids, "labels": list(ids)}


def _fingerprint(rows: Dataset, tokenizer: PreTrainedTokenizerBase, *options: Any) -> str:
    """What the result depends on: rows, tokenizer, template, options, and this package's code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = (tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None))
    what = (rows._fingerprint, words, special, type(tokenizer).__name__, options, code_digest())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _report(
    counts: Mapping[str, np.ndarray], sources: np.ndarray, mode: str, max_length: int | None
) -> SequenceReport:
    rows, kept = counts["row"], counts["kept_trained"]
    begins = counts["part"] == 0
    index = np.cumsum(begins) - 1  # which row a sequence is of, counted as the rows are read
    numbers, total = rows[begins], int(begins.sum())
    length = counts["length"] if max_length is None else np.minimum(counts["length"], max_length)
    trained = np.bincount(index, kept, minlength=total)
    several = np.bincount(index, minlength=total) > 1
    over = np.zeros_like(kept, bool) if max_length is None else counts["length"] > max_length
    no_stop = (kept > 0) & (counts["last_trained"] >= length)
    left_out = kept == 0
    lost_turns = left_out & (trained[index] > 0)

    def rows_with(mask: np.ndarray) -> np.ndarray:
        return np.bincount(index, mask, minlength=total) > 0

    by_name = {
        "rows_split": numbers[several],
        "rows_cut": numbers[rows_with(over)],
        "rows_stop_lost": numbers[rows_with(no_stop)],
        "rows_lost": numbers[trained == 0],
        "turns_lost": rows[lost_turns],
        "rows_single": numbers[trained == 1],
    }
    return SequenceReport(
        mode=mode,
        max_length=max_length,
        rows=total,
        sequences=int((~left_out).sum()),
        tokens=int(length[~left_out].sum()),
        trained_tokens=int(kept.sum()),
        longest=int(counts["length"].max(initial=0)),
        named={name: [str(n) for n in found[:NAMED_ROWS]] for name, found in by_name.items()},
        **{name: len(found) for name, found in by_name.items()},
    )


def _nothing_left(
    sources: np.ndarray, counts: Mapping[str, np.ndarray], max_length: int | None
) -> DataError:
    nearest = int(counts["first_trained"].argmin())
    needed = int(counts["first_trained"][nearest]) + 1
    return DataError(
        f"no row keeps a trained token within max_length {max_length}: the first trained token of "
        f"{sources[nearest]}, row {counts['row'][nearest]}, is number {needed:,}; raise max_length"
    )


def _readable(number: int) -> str:
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (100_000, "k")):
        if number >= size:
            return f"{number / (1000 if unit == 'k' else size):.3g}{unit}"
    return f"{number:,}"
