"""Rows as they will be trained: how many, how long, what is cut, doubled, or held out and trained."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from toolkit.data import inspect
from toolkit.data.chat_tokens import IGNORED
from toolkit.data.files import LINES, suffix_of
from toolkit.data.held_out import digests
from toolkit.data.pairs import tokenize_pairs
from toolkit.data.plans import FIELDS
from toolkit.data.prompts import prompt_lengths
from toolkit.data.sequence_report import SequenceReport, check_stops, readable
from toolkit.data.sources import Rows, load_rows
from toolkit.errors import ToolkitError
from toolkit.models.load import load_tokenizer, remote_code
from toolkit.preflight import exam
from toolkit.preflight.look import Look
from toolkit.recipe import StageRecipe
from toolkit.stages.preferences import whole_ids
from toolkit.stages.prepared import chat_tokenizer, sequences_of

SUBJECT = "data"
SAMPLE = 2000  # rows that are tokenized, at most: seconds
LARGE = 32 * 2**20  # bytes of a file of lines above which not every line is read as JSON
BARS = 10
PURPOSES = {
    "sft": "sft", "reward": "preference", "dpo": "preference", "grpo": "prompt", "ppo": "prompt",
    "rank": "prompt", "rejection": "prompt", "pretrain": "sft",
}  # fmt: skip


def check(look: Look) -> None:
    """Read, tokenize and look at a stage's rows, and at the questions of its exam."""
    if look.stage.stage != "evaluate":
        check_rows(look)
    if look.stage.get("tasks"):
        exam.check(look)


def check_rows(look: Look) -> None:
    """Read, tokenize and look at what a stage trains on."""
    if look.is_to_come(look.stage.get("dataset_name")):
        look.warn(SUBJECT, f"unchecked: stage {look.stage['dataset_name']} will make these rows")
        return
    with sampled_lines(look) as stage:
        rows = load_rows(stage, purpose=PURPOSES[stage.stage])
        told_of(look, rows)
        rows = few(look, rows)
        look.rows = rows
        if stage.stage == "pretrain":
            look.ok(SUBJECT, f"{look.total:,} documents")
            return
        tokenizer_of(look, stage, rows)
        report = tokens(look, stage, rows)
        positions(look)
        doubled(look, rows)
        if report is not None:
            check_stops(report)


def tokenizer_of(look: Look, stage: StageRecipe, rows: Rows) -> None:
    """The tokenizer with the template and the tokens that the stage trains with."""
    given = look.inherited()
    if stage.stage == "rank":  # it asks as the model before it was taught
        place = look.parent() or str(stage["model_name_or_path"])
        look.tokenizer = given or load_tokenizer(place, **remote_code(stage))
        return
    look.tokenizer, change = chat_tokenizer(stage, look.parent(), given, rows.conversational)
    for line in change.notes:
        look.ok("template", line)


def told_of(look: Look, rows: Rows) -> None:
    """What was said while the rows were read."""
    for line in rows.notes:
        if "blank line" in line and look.total:
            continue  # they stand for what was not sampled
        if line.startswith("warning: "):
            look.warn(
                SUBJECT, line.removeprefix("warning: "), "take them out of one side; a score on "
                "them says nothing"
            )  # fmt: skip
        else:
            look.ok(SUBJECT, line)


@contextmanager
def sampled_lines(look: Look) -> Iterator[StageRecipe]:
    """The stage, which of a large file of lines reads a sample; each row keeps its number.

    Lines that are not in the sample are blank in a copy, so that those that are stay where they are.
    """
    path = Path(str(look.stage.get("dataset_name"))).expanduser()
    is_plain = path.is_file() and suffix_of(path) in LINES and path.suffix != ".gz"
    if not is_plain or path.stat().st_size <= LARGE:
        yield look.stage
        return
    with path.open("rb") as stream:
        look.total = sum(1 for line in stream if line.strip())
    drawn = set(random.Random(0).sample(range(look.total), min(SAMPLE, look.total)))
    with TemporaryDirectory() as folder:
        copy, at = Path(folder) / path.name, 0
        with path.open("rb") as stream, copy.open("wb") as kept:
            for line in stream:
                kept.write(line if at in drawn else b"\n")
                at += bool(line.strip())
        try:
            yield replace(look.stage, written={**look.stage.written, "dataset_name": str(copy)})
        except ToolkitError as error:
            raise type(error)(str(error).replace(str(copy), str(path))) from error


def few(look: Look, rows: Rows) -> Rows:
    """As many of the rows as can be tokenized in seconds, spread over all of them."""
    count = len(rows.train)
    look.total = look.total or count
    if count > SAMPLE:
        rows = replace(rows, train=rows.train.select(np.linspace(0, count - 1, SAMPLE, dtype=int)))
    if len(rows.train) < look.total:
        look.ok(
            SUBJECT,
            f"looked at {len(rows.train):,} of {look.total:,} rows; counts are the sample's",
        )
    return rows


def tokens(look: Look, stage: StageRecipe, rows: Rows) -> SequenceReport | None:
    """Lengths, the share that is trained, and what is cut; of sequences, the account of it."""
    assert look.tokenizer is not None
    report = None
    if rows.format == "prompt":
        _, look.lengths = prompt_lengths(rows.train, look.tokenizer, bad=rows.bad)
        look.ok(SUBJECT, f"{look.total:,} prompts; {spread(look.lengths)}")
        shown_prompts(look, rows)
    elif rows.format == "ranked":
        found = tokenize_pairs(
            rows.train, look.tokenizer, max_length=stage["max_length"], bad=rows.bad
        )
        longer = found.lengths.max(axis=1)
        asked = np.array([len(ids) for ids in found.dataset["prompt_ids"]])
        look.lengths, look.answers = (asked + longer).tolist(), longer.tolist()
        look.trained = found.lengths.sum(axis=1).tolist()
        for number, line in enumerate(found.report.lines()):
            (look.warn if number else look.ok)(SUBJECT, line)
        look.findings.samples[look.name] = [
            pair_shown(look, row) for row in first(look, found.dataset)
        ]
    else:
        report = trained(look, stage, rows)
    look.note(
        SUBJECT, format=rows.format, rows=look.total, sampled=len(rows.train),
        held_out=len(rows.eval) if rows.eval is not None else 0, **numbers(look.lengths),
    )  # fmt: skip
    return report


def positions(look: Look) -> None:
    """Whether the base has a position for every token of the longest."""
    text = look.config.get_text_config() if look.config is not None else None
    limit = getattr(text, "max_position_embeddings", None)
    completion = int(look.stage.get("max_completion_length") or 0)
    longest = max(look.lengths, default=0) + completion
    if not limit or longest <= limit:
        return
    key, most = "max_length", limit
    if completion:
        key, most = "max_completion_length", max(1, limit - longest + completion)
    what = "prompt with its completion" if completion else "sequence"
    look.error(
        SUBJECT, f"the longest {what} has {longest:,} tokens, and the base {limit:,} positions",
        f"{key}: {most}", 3,
    )  # fmt: skip


def trained(look: Look, stage: StageRecipe, rows: Rows) -> SequenceReport:
    """Of sequences: what carries loss, and what truncation costs."""
    assert look.tokenizer is not None
    whole = replace(stage, written={**stage.written, "max_length": None})
    every = sequences_of(whole, rows, rows.train, look.tokenizer, None, rows.bad)
    lengths = np.array([len(ids) for ids in every.dataset["input_ids"]])
    found = every
    if stage["max_length"] is not None and lengths.max(initial=0) > stage["max_length"]:
        found = sequences_of(stage, rows, rows.train, look.tokenizer, None, rows.bad)
    look.lengths = [len(ids) for ids in found.dataset["input_ids"]]
    look.trained = [len(ids) - ids.count(IGNORED) for ids in found.dataset["labels"]]
    report = found.report
    for number, line in enumerate(report.lines()):
        (look.warn if number else look.ok)(SUBJECT, line)
    share, cut = report.trained_tokens / max(1, report.tokens), int(lengths.sum()) - report.tokens
    look.note(
        SUBJECT,
        trained_share=share,
        tokens_cut=cut,
        rows_cut=report.rows_cut,
        lost=report.rows_lost,
    )
    if cut:
        lost = every.report.trained_tokens - report.trained_tokens
        look.warn(
            SUBJECT,
            f"max_length {stage['max_length']} cuts off {readable(cut)} tokens "
            f"({cut / lengths.sum():.1%}), {readable(lost)} of them trained",
            f"max_length: {int(np.percentile(lengths, 99))} keeps 99 % of the sequences whole",
        )
    if share > 0.99 and rows.format != "text":
        look.warn(SUBJECT, f"{share:.0%} of the tokens are trained, prompts too",
                  "leave assistant_only_loss and completion_only_loss out")  # fmt: skip
    look.findings.samples[look.name] = [
        inspect.render(row, look.tokenizer) for row in first(look, found.dataset)
    ]
    return report


def doubled(look: Look, rows: Rows) -> None:
    """Rows that are there more than once."""
    counts = Counter(digests(rows.train, FIELDS[rows.format]))
    extra = sum(counts.values()) - len(counts)
    look.note(SUBJECT, duplicates=extra)
    if not extra:
        look.ok(SUBJECT, "no row is there twice")
        return
    most = max(counts.values())
    look.warn(
        SUBJECT, f"{extra:,} of {len(rows.train):,} rows are copies of another; one is there "
        f"{most:,} times", "take them out, or count them as weights that you meant",
    )  # fmt: skip


def first(look: Look, dataset: Any) -> Iterator[Any]:
    """The rows that are shown."""
    named = str(look.stage.get("dataset_name"))
    for at in range(min(look.options.shown, len(dataset))):
        row = dataset[at]
        is_copy = Path(row["source"]).name == Path(named).name  # of a large file
        yield {**row, "source": named} if is_copy else row


def shown_prompts(look: Look, rows: Rows) -> None:
    """The first prompts as the model is asked them; nothing in them is trained."""
    assert look.tokenizer is not None
    shown = []
    for row in first(look, rows.train):
        prompt = row["prompt"]
        if isinstance(prompt, str):
            ids = look.tokenizer(prompt).input_ids
        else:
            text = look.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=False
            )
            ids = look.tokenizer(str(text), add_special_tokens=False).input_ids
        place = {"source": row["source"], "row": row["row"]}
        shown.append(
            inspect.render({"input_ids": ids, "labels": [-100] * len(ids)} | place, look.tokenizer)
        )
    look.findings.samples[look.name] = shown


def pair_shown(look: Look, row: Any) -> Any:
    """A pair's prompt and chosen answer, the answer coloured."""
    assert look.tokenizer is not None
    ids = whole_ids(row)
    labels = [-100] * len(row["prompt_ids"]) + list(row["chosen_ids"])
    place = {"source": row["source"], "row": row["row"]}
    return inspect.render({"input_ids": ids, "labels": labels} | place, look.tokenizer)


def spread(lengths: Sequence[int]) -> str:
    """Lengths in words."""
    found = numbers(lengths)
    return f"{found['median']:,} tokens in the middle, 95 % within {found['p95']:,}, {found['longest']:,} at most"


def numbers(lengths: Sequence[int]) -> dict[str, Any]:
    """Lengths in a few numbers, and as bars: the upper end of each and how many are in it."""
    if not lengths:
        return {}
    values = np.array(lengths)
    counts, edges = np.histogram(values, bins=min(BARS, max(1, int(np.ptp(values)) or 1)))
    return {
        "shortest": int(values.min()),
        "median": int(np.median(values)),
        "p95": int(np.percentile(values, 95)),
        "longest": int(values.max()),
        "mean": float(values.mean()),
        "histogram": [
            {"from": int(np.ceil(low)), "to": int(high), "count": int(count)}
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
    }
