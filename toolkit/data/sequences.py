"""From rows to `input_ids` and `labels`, cut to `max_length`, with an account of every row."""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from toolkit.data.bad_rows import BROKEN, BadRows
from toolkit.data.chat import completion_sequences, read_conversation, text_sequence
from toolkit.data.chat_kept import left_out
from toolkit.data.chat_tokens import IGNORED, Encoder
from toolkit.data.columns import PLACE, exact_columns
from toolkit.data.control_tokens import check_spoken
from toolkit.data.formats import TOOLS
from toolkit.data.key import code_digest
from toolkit.data.once import mapped
from toolkit.data.probe import NOW
from toolkit.data.sequence_report import KEEP_END, KEEP_START, SequenceReport, report_of
from toolkit.data.template_render import Template
from toolkit.errors import DataError

COUNTED = ("length", "part", "first_trained", "last_trained", "trained", "kept")
KINDS = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "dataset": Value("string"),
    "source": Value("string"),
    "row": Value("int64"),
    "left_out": Value("string"),
    BROKEN: Value("string"),
    **{name: Value("int64") for name in COUNTED},
}
EMPTY: dict[str, list[int]] = {"input_ids": [], "labels": []}
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
        truncation_mode: "keep_start" or "keep_end".
    """

    format: str
    whole: bool
    max_length: int | None
    text_field: str
    truncation_mode: str

    def window(self, length: int) -> tuple[int, int]:
        """The first index that is kept of a sequence of so many tokens, and the one after the last."""
        if self.max_length is None or length <= self.max_length:
            return 0, length
        if self.truncation_mode == KEEP_END:
            return length - self.max_length, length
        return 0, self.max_length


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
    truncation_mode: str = KEEP_START,
    bad: BadRows | None = None,
) -> Sequences:
    """Token ids and labels of checked rows.

    Args:
        rows: as `to_standard` gives them.
        tokenizer: with the template and the stop token that training needs.
        format: "messages", "prompt_completion" or "text".
        max_length: sequences are cut to so many tokens; None to cut none.
        completion_only_loss: False to train the prompt too.
        assistant_only_loss: False to train every token of `messages`.
        dataset_text_field: the column of `text` rows, if not `text`.
        num_proc: processes that share the work; the result does not depend on it.
        truncation_mode: TRL's key: "keep_start" cuts the end off, "keep_end" the beginning.
        bad: takes rows whose mask cannot be exact; without it, the first of them is an error.

    Returns:
        The sequences in the order of their rows. One without a trained token after the cut is left
        out, counted and named in the report.

    Raises:
        DataError: for a row whose mask cannot be exact, with its file and row, and if no sequence
            would be left.
    """
    with_prompts = completion_only_loss is False
    whole = {"messages": not assistant_only_loss, "prompt_completion": with_prompts}
    text_field = dataset_text_field if dataset_text_field in rows.column_names else "text"
    bad = bad or BadRows()
    options = Options(format, whole.get(format, False), max_length, text_field, truncation_mode)
    found = mapped(
        rows.with_format("arrow"),
        _encode,
        batched=True,
        batch_size=250,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        features=Features(KINDS),
        fn_kwargs={"tokenizer": tokenizer, "options": options, "bad": bad},
        fingerprint=token_fingerprint(rows, tokenizer, options),
        desc="tokenizing",
    )
    found = bad.taken_from(found.with_format(None))
    counts, reports = _reports(found, options)
    if not counts["kept"].any():
        raise DataError(_why_nothing_is_left(found, counts, options))
    found = found.select(np.flatnonzero(counts["kept"]))
    unneeded = ["dataset", "left_out", *COUNTED]
    return Sequences(found.remove_columns(unneeded), reports.pop(""), reports)


def _encode(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, options: Options, bad: BadRows
) -> dict[str, list[Any]]:
    """The sequences of some rows, cut, with what the report counts.

    What is wrong with a row stands in `BROKEN`, or is raised.
    """
    batch = exact_columns(table)
    sequences_of = _sequencer(tokenizer, options)
    found: dict[str, list[Any]] = {name: [] for name in KINDS}
    for index in range(len(table)):
        row = {name: values[index] for name, values in batch.items()}
        broken = None
        try:
            sequences, missing = sequences_of(row)
            if any(len(sequence["input_ids"]) < 2 for sequence in sequences):
                raise DataError("the row is one token only, and nothing comes before it")
        except DataError as error:
            if bad.stops_at_first:
                place = f"{row['source']}, row {row['row']}"
                bad.add(row["source"], row["row"], f"{place}: {error}")
            sequences, missing, broken = [EMPTY], [], str(error)
        told = {name: row.get(name) for name in ("dataset", *PLACE)}
        told |= {"left_out": ", ".join(missing), BROKEN: broken}
        for part, sequence in enumerate(sequences):
            for name, value in (told | _counted(sequence, part, options)).items():
                found[name].append(value)
    return found


def _counted(sequence: Mapping[str, list[int]], part: int, options: Options) -> dict[str, Any]:
    """A sequence, cut, with what the report counts of it."""
    ids, labels = sequence["input_ids"], sequence["labels"]
    trained = [at for at, label in enumerate(labels) if label != IGNORED]
    start, end = options.window(len(ids))
    return {
        "length": len(ids),
        "part": part,
        "first_trained": trained[0] if trained else len(ids),
        "last_trained": trained[-1] if trained else -1,
        "trained": len(trained),
        "kept": bisect_left(trained, end) - bisect_left(trained, start),
        "input_ids": ids[start:end],
        "labels": labels[start:end],
    }


# The sequences of a row, and what the chat template leaves out of it.
Sequencer = Callable[[Mapping[str, Any]], tuple[list[dict[str, list[int]]], list[str]]]


def _sequencer(tokenizer: PreTrainedTokenizerBase, options: Options) -> Sequencer:
    """What makes the sequences of a row."""
    if options.format == "text":
        return lambda row: ([text_sequence(tokenizer, row[options.text_field])], [])
    if options.whole:
        return _whole_sequencer(tokenizer, options)

    def sequences_of(row: Mapping[str, Any]) -> tuple[list[dict[str, list[int]]], list[str]]:
        if isinstance(row.get("prompt"), str):
            return completion_sequences(tokenizer, row["prompt"], row["completion"]), []
        before, messages = _messages(row)
        check_spoken(tokenizer, messages, row.get(TOOLS))
        reading = read_conversation(tokenizer, messages, row.get(TOOLS), before)
        return reading.sequences, reading.left_out()

    return sequences_of


def _messages(row: Mapping[str, Any]) -> tuple[int, list[Any]]:
    """How many messages are the prompt of a completion, and all messages."""
    if "prompt" in row:
        return len(row["prompt"]), [*row["prompt"], *row["completion"]]
    return 0, row["messages"]


def _whole_sequencer(tokenizer: PreTrainedTokenizerBase, options: Options) -> Sequencer:
    """What makes one sequence of a row, with every token of it trained."""
    template, encoder = Template(tokenizer), Encoder(tokenizer)

    def sequences_of(row: Mapping[str, Any]) -> tuple[list[dict[str, list[int]]], list[str]]:
        missing: list[str] = []
        if options.format == "prompt_completion" and isinstance(row["prompt"], str):
            (sequence,) = completion_sequences(tokenizer, row["prompt"], row["completion"])
            ids = sequence["input_ids"]
        else:
            tools = row.get(TOOLS)
            messages = _messages(row)[1]
            check_spoken(tokenizer, messages, tools)
            conversation = template.normalise(messages, tools)
            (text,) = template.render([conversation], tools)
            ids = encoder.ids(text)
            missing = left_out(template, conversation, tools, text, answers=True)
        return [{"input_ids": ids, "labels": list(ids)}], missing

    return sequences_of


def token_fingerprint(rows: Dataset, tokenizer: PreTrainedTokenizerBase, options: Any) -> str:
    """What the result depends on: rows, tokenizer, template, options, and the code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    template = getattr(tokenizer, "chat_template", None)
    special = (
        tokenizer.special_tokens_map,
        template,
        date.today() if NOW in str(template) else None,
    )
    what = (rows._fingerprint, words, special, options, type(tokenizer).__name__, code_digest())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _reports(
    found: Dataset, options: Options
) -> tuple[dict[str, np.ndarray], dict[str, SequenceReport]]:
    """The counts of all sequences, the report on them as "", and of a mixture each data set's."""
    mode = "every token" if options.whole else MODES.get(options.format, "every token")
    columns = [*COUNTED, "left_out", "dataset", "source"]
    table: Any = found.select_columns(columns).with_format("arrow")[:]
    counts = {name: table.column(name).to_numpy() for name in (*COUNTED, "left_out")}
    counts["at"] = np.arange(len(table))
    several = len(table.column("source").unique()) > 1

    def row_name(at: int) -> str:
        row = found[at]
        return f"{Path(row['source']).name}:{row['row']}" if several else str(row["row"])

    cut = {"max_length": options.max_length, "truncation_mode": options.truncation_mode}
    reports = {"": report_of(counts, row_name, mode=mode, **cut)}
    names = table.column("dataset").dictionary_encode().combine_chunks()
    members = np.asarray(names.indices)
    for index, name in enumerate(names.dictionary.to_pylist() if len(names.dictionary) > 1 else ()):
        part = {key: values[members == index] for key, values in counts.items()}
        reports[name] = report_of(part, row_name, mode=mode, **cut)
    return counts, reports


def _why_nothing_is_left(found: Dataset, counts: Mapping[str, np.ndarray], options: Options) -> str:
    which, place, number = "first", "", counts["first_trained"] + 1
    if options.truncation_mode == KEEP_END:
        which, place = "last", " from the end"
        number = counts["length"] - counts["last_trained"]
    number = np.where(counts["trained"] > 0, number, np.iinfo(np.int64).max)
    row = found[int(number.argmin())]
    return (
        f"no row keeps a trained token within max_length {options.max_length}: the {which} trained "
        f"token of {row['source']}, row {row['row']}, is number {int(number.min()):,}{place}; raise "
        "max_length"
    )
