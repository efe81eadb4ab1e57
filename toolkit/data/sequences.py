"""From rows to `input_ids` and `labels`, cut to `max_length`, with an account of every row."""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import transformers
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import completion_sequences, text_sequence, training_sequences
from toolkit.data.chat_tokens import IGNORED, Encoder
from toolkit.data.columns import PLACE, exact_columns
from toolkit.data.formats import TOOLS, code_digest
from toolkit.data.sequence_report import SequenceReport, report_of
from toolkit.data.template_render import Template
from toolkit.errors import DataError

COUNTED = ("length", "part", "first_trained", "last_trained", "trained", "kept")
KINDS = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "dataset": Value("string"),
    "source": Value("string"),
    "row": Value("int64"),
    **{name: Value("int64") for name in COUNTED},
}
MODES = {"messages": "the assistant's turns", "prompt_completion": "the completion"}


@dataclass(frozen=True)
class Sequences:
    """What is trained, and the account of how it came about.

    Attributes:
        dataset: `input_ids` and `labels`, the token itself or -100; `source` and `row`.
        report: the account.
        by_dataset: the account of each data set of a mixture; empty if there is only one.
    """

    dataset: Dataset
    report: SequenceReport
    by_dataset: Mapping[str, SequenceReport] = field(default_factory=dict)


class Options(NamedTuple):
    """What the tokens of a row depend on, besides the row and the tokenizer.

    Attributes:
        format: "messages", "prompt_completion" or "text".
        whole: whether every token of a conversation or a prompt is trained too.
        max_length: where sequences are cut.
        text_field: the column of text.
    """

    format: str
    whole: bool
    max_length: int | None
    text_field: str


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
    whole = {
        "messages": not assistant_only_loss,
        "prompt_completion": completion_only_loss is False,
    }
    text_field = dataset_text_field if dataset_text_field in rows.column_names else "text"
    options = Options(format, whole.get(format, False), max_length, text_field)
    found = rows.with_format("arrow").map(
        _encode,
        batched=True,
        batch_size=250,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        features=Features(KINDS),
        fn_kwargs={"tokenizer": tokenizer, "options": options},
        new_fingerprint=_fingerprint(rows, tokenizer, options),
        desc="tokenizing",
    )
    found = found.with_format(None)
    counts, reports = _reports(found, options)
    if not counts["kept"].any():
        raise DataError(_why_nothing_is_left(found, counts, max_length))
    if not counts["kept"].all():
        found = found.select(np.flatnonzero(counts["kept"]))
    whole_report = reports.pop("")
    return Sequences(found.remove_columns(["dataset", *COUNTED]), whole_report, reports)


def _encode(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, options: Options
) -> dict[str, list[Any]]:
    """The sequences of some rows, cut, with what the report counts."""
    batch = exact_columns(table)
    sequences_of = _sequencer(tokenizer, options)
    found: dict[str, list[Any]] = {name: [] for name in KINDS}
    for index in range(len(table)):
        row = {name: values[index] for name, values in batch.items()}
        try:
            sequences = sequences_of(row)
        except DataError as error:
            raise DataError(f"{row['source']}, row {row['row']}: {error}") from error
        for part, sequence in enumerate(sequences):
            ids, labels = sequence["input_ids"], sequence["labels"]
            trained = [at for at, label in enumerate(labels) if label != IGNORED]
            end = len(ids) if options.max_length is None else options.max_length
            counted = {
                "length": len(ids),
                "part": part,
                "first_trained": trained[0] if trained else len(ids),
                "last_trained": trained[-1] if trained else -1,
                "trained": len(trained),
                "kept": bisect_left(trained, end),
            }
            place = {name: row.get(name) for name in ("dataset", *PLACE)}
            for name, value in {**place, **counted}.items():
                found[name].append(value)
            found["input_ids"].append(ids[:end])
            found["labels"].append(labels[:end])
    return found


Sequencer = Callable[[Mapping[str, Any]], list[dict[str, list[int]]]]


def _sequencer(tokenizer: PreTrainedTokenizerBase, options: Options) -> Sequencer:
    """What makes the sequences of a row."""
    if options.format == "text":
        return lambda row: [text_sequence(tokenizer, row[options.text_field])]
    if options.whole:
        return _whole_sequencer(tokenizer, options)
    if options.format == "messages":
        return lambda row: training_sequences(tokenizer, row["messages"], tools=row.get(TOOLS))
    return lambda row: completion_sequences(
        tokenizer, row["prompt"], row["completion"], tools=row.get(TOOLS)
    )


def _whole_sequencer(tokenizer: PreTrainedTokenizerBase, options: Options) -> Sequencer:
    """What makes one sequence of a row, with every token of it trained."""
    template, encoder = Template(tokenizer), Encoder(tokenizer)

    def sequences_of(row: Mapping[str, Any]) -> list[dict[str, list[int]]]:
        if options.format == "prompt_completion" and isinstance(row["prompt"], str):
            (sequence,) = completion_sequences(tokenizer, row["prompt"], row["completion"])
            ids = sequence["input_ids"]
        else:
            messages = row.get("messages") or [*row["prompt"], *row["completion"]]
            tools = row.get(TOOLS)
            (text,) = template.render([template.normalise(messages, tools)], tools)
            ids = encoder.ids(text)
        return [{"input_ids": ids, "labels": list(ids)}]

    return sequences_of


def _fingerprint(rows: Dataset, tokenizer: PreTrainedTokenizerBase, options: Options) -> str:
    """What the result depends on: rows, tokenizer, template, options, and the code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = (tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None))
    code = (type(tokenizer).__name__, transformers.__version__, code_digest())
    what = (rows._fingerprint, words, special, options, code)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _reports(
    found: Dataset, options: Options
) -> tuple[dict[str, np.ndarray], dict[str, SequenceReport]]:
    """The counts of all sequences, the report on them as "", and of a mixture each data set's."""
    mode = "every token" if options.whole else MODES.get(options.format, "every token")
    table: Any = found.select_columns([*COUNTED, "dataset", "source"]).with_format("arrow")[:]
    counts = {name: table.column(name).to_numpy() for name in COUNTED}
    counts["at"] = np.arange(len(table))
    several = len(table.column("source").unique()) > 1

    def row_name(at: int) -> str:
        row = found[at]
        return f"{Path(row['source']).name}:{row['row']}" if several else str(row["row"])

    reports = {"": report_of(counts, row_name, mode=mode, max_length=options.max_length)}
    names = table.column("dataset").dictionary_encode().combine_chunks()
    members = np.asarray(names.indices)
    for index, name in enumerate(names.dictionary.to_pylist() if len(names.dictionary) > 1 else ()):
        part = {key: values[members == index] for key, values in counts.items()}
        reports[name] = report_of(part, row_name, mode=mode, max_length=options.max_length)
    return counts, reports


def _why_nothing_is_left(
    found: Dataset, counts: Mapping[str, np.ndarray], max_length: int | None
) -> str:
    if not counts["trained"].any():
        return f"{found[0]['source']}: no row has an assistant turn, so there is nothing to train"
    first = np.where(counts["trained"] > 0, counts["first_trained"], np.iinfo(np.int64).max)
    row = found[int(first.argmin())]
    return (
        f"no row keeps a trained token within max_length {max_length}: the first trained token of "
        f"{row['source']}, row {row['row']}, is number {int(first.min()) + 1:,}; raise max_length"
    )
