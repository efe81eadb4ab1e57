"""`toolkit init`: look at the data and the device, and write a recipe that runs."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from datasets import Dataset
from transformers import AutoConfig

from toolkit.data.formats import FIELDS, TOOLS, to_standard
from toolkit.data.sequences import tokenize
from toolkit.data.tables import load_table
from toolkit.errors import UsageError
from toolkit.models import chatml
from toolkit.models.load import load_tokenizer

CHARACTERS_PER_TOKEN = 3.5  # of English text with a vocabulary of common size, rounded down
MEASURED_ROWS = 2000
GIB = 1024**3
# What not every chat template renders, in rows as JSON text: there, a quotation mark inside a text
# has a backslash before it.
NEEDS = {
    "tool calls": r'"tool_calls": \[\{',
    "tool results": r'"role": "tool"',
    "reasoning": r'"(reasoning_content|reasoning|thinking)": "[^"]',
}
REFUSED_BY_CHATML = {"tool calls", "reasoning"}
TELLING_BASE = "Qwen/Qwen3-0.6B"  # small, and its chat template renders all of them
TRAINED = {
    "messages": "the assistant's turns are",
    "prompt_completion": "the completion is",
    "text": "every token is",
}
Line = tuple[str, Any, str]  # key, value, comment


@dataclass(frozen=True)
class Choice:
    """What suits a device: a base, and how it is trained.

    Attributes:
        device: the device in words.
        base: a Hub id.
        in_4bit: whether the base is held in 4 bits.
        tokens: how many tokens one step of one device can hold.
        length: the largest `max_length` that is sensible.
    """

    device: str
    base: str
    in_4bit: bool
    tokens: int
    length: int


@dataclass(frozen=True)
class Look:
    """What the rows are like.

    Attributes:
        count: how many there are.
        format: "messages", "prompt_completion" or "text".
        conversational: whether they are messages.
        lengths: tokens of each sequence that was measured.
        measured: how they were counted, in words.
        positions: how many the base has; None if that is not known here.
        notes: what was converted, is not used, or is lost.
        needs: what they have that not every chat template renders: `tools`, and as in `NEEDS`.
    """

    count: int
    format: str
    conversational: bool
    lengths: np.ndarray
    measured: str
    positions: int | None
    notes: list[str]
    needs: tuple[str, ...] = ()


def write_first_recipe(
    data_path: str, *, output: str | None = None, model_name_or_path: str | None = None
) -> Path:
    """Look at rows and at the device, and write a commented SFT recipe that runs as it stands.

    Args:
        data_path: a file, a folder or a Hub id.
        output: where the recipe goes; by default the data's name with `.yaml`, in this folder.
        model_name_or_path: the base; by default one that fits the device.

    Returns:
        The recipe's path.

    Raises:
        UsageError: if the recipe's file is there already, or cannot be written; or if the base has
            no chat template and the rows need one that ChatML cannot stand for.
        DataError: if a row is wrong.
        HubError: if the Hub does not give the data.
    """
    path = Path(output) if output else Path(f"sft_{_stem(data_path)}.yaml")
    choice = choose()
    if path.exists():
        raise UsageError(f"{path} is there already; name another file with --output")
    look = look_at(data_path, model_name_or_path or choice.base)
    text = recipe_text(data_path, look, choice, model_name_or_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _stem(data_path: str) -> str:
    name = Path(data_path.rstrip("/\\")).name.split(".")[0]
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    return kept or "data"


def choose() -> Choice:
    """What suits the device that is here."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        memory = device.total_memory / GIB
        words = f"{torch.cuda.device_count()} × {device.name}, {memory:.0f} GiB"
        if memory >= 40:
            return Choice(words, "Qwen/Qwen3-4B-Base", False, 32768, 4096)
        if memory >= 14:
            return Choice(words, "Qwen/Qwen3-4B-Base", True, 8192, 2048)
        return Choice(words, "Qwen/Qwen3-0.6B-Base", False, 4096, 2048)
    if torch.backends.mps.is_available():
        return Choice("Apple GPU (MPS)", "Qwen/Qwen3-0.6B-Base", False, 4096, 2048)
    return Choice("CPU", "HuggingFaceTB/SmolLM2-135M", False, 1024, 1024)


def look_at(data_path: str, base: str) -> Look:
    """Check every row, and measure the length of some.

    Args:
        data_path: a file, a folder or a Hub id.
        base: counts tokens if it is a folder on this disk; else characters are counted.

    Raises:
        UsageError: if rows have what ChatML does not render, and the base has no chat template.
    """
    table, origin = load_table(data_path)
    rows, form, notes = to_standard(table, origin=data_path)
    notes = [*origin.get("notes", ()), *notes]
    some = rows.select(range(0, len(rows), -(-len(rows) // MEASURED_ROWS)))
    is_chat = not isinstance(some[0][FIELDS[form][0]], str)
    needs = [what for what, words in NEEDS.items() if _says(rows, FIELDS[form], words)]
    needs += ["tools"] * _says(rows, [TOOLS], r"\{")
    if not Path(base).expanduser().is_dir():
        lengths = np.array([_characters(row, form) for row in some]) / CHARACTERS_PER_TOKEN
        measured = f"estimated, {CHARACTERS_PER_TOKEN} characters each"
        return Look(len(rows), form, is_chat, lengths, measured, None, notes, tuple(needs))
    tokenizer = load_tokenizer(base)
    if tokenizer.chat_template is None and (lost := REFUSED_BY_CHATML.intersection(needs)):
        raise UsageError(
            f"{data_path} has {' and '.join(sorted(lost))}, and the base {base} has no chat template "
            "that renders them; name one that has with --model_name_or_path, such as "
            f"{TELLING_BASE}, or write a recipe with chat_template_path"
        )
    chatml.prepare_tokenizer(tokenizer, conversational=is_chat)
    found = tokenize(some, tokenizer, format=form, max_length=None)
    lengths = np.array([len(ids) for ids in found.dataset["input_ids"]])
    notes += found.report.lines()[1:]
    measured = f"as {base} counts" + f", of {len(some):,} rows" * (len(some) < len(rows))
    positions = _positions(base)
    return Look(len(rows), form, is_chat, lengths, measured, positions, notes, tuple(needs))


def _says(rows: Dataset, columns: Iterable[str], words: str) -> bool:
    """Whether the JSON text of a column matches this regular expression anywhere."""
    for name in columns:
        if name not in rows.column_names:
            continue
        for batch in rows.select_columns(name).with_format("arrow").iter(batch_size=5000):
            table: Any = batch
            for chunk in table.column(name).chunks:
                is_json = isinstance(chunk, pa.ExtensionArray)
                if is_json and pc.any(pc.match_substring_regex(chunk.storage, words)).as_py():  # type: ignore[attr-defined]
                    return True
    return False


def _positions(base: str) -> int | None:
    """How many positions a base in a folder has; None if it does not say."""
    try:
        config = AutoConfig.from_pretrained(base).get_text_config()
    except (OSError, ValueError):  # no config.json, or of a model that is not known
        return None
    return getattr(config, "max_position_embeddings", None)


def _characters(row: Any, form: str) -> int:
    values = [row[column] for column in FIELDS[form]]
    return sum(
        len(v) if isinstance(v, str) else len(json.dumps(v, ensure_ascii=False)) for v in values
    )


def recipe_text(data_path: str, look: Look, choice: Choice, base: str | None) -> str:
    """The recipe, with a comment where a choice was made."""
    most = float(np.percentile(look.lengths, 99))
    about = [
        f"SFT on {data_path}: {look.count:,} rows of {' and '.join(FIELDS[look.format])}; "
        f"{TRAINED[look.format]} trained.",
        f"Lengths in tokens ({look.measured}): median {np.median(look.lengths):,.0f}, "
        f"99 % within {most:,.0f}, longest {look.lengths.max():,.0f}.",
        f"Written for: {choice.device}.",
        *(f"Note: {note}" for note in look.notes),
    ]
    max_length = min(choice.length, max(64, -(-int(most * 1.1) // 64) * 64))
    max_length = min(max_length, look.positions or max_length)
    sections = [
        [("stage", "sft", ""), ("output_dir", f"runs/sft_{_stem(data_path)}", "")],
        _model(look, choice, base),
        _data(data_path, look, max_length),
        _training(look.count, choice.tokens // max_length),
    ]
    comments = "".join(f"# {_one_line(line)}\n" for line in about)
    body = "\n".join("".join(_line(*line) for line in section) for section in sections)
    return comments + body


def _model(look: Look, choice: Choice, base: str | None) -> list[Line]:
    rendered = " and ".join(look.needs)
    if base is not None:
        must = f"its chat template must render {rendered}; if not, set chat_template_path"
        is_unknown = bool(look.needs) and look.positions is None
        return [("model_name_or_path", base, must if is_unknown else "")]
    chosen, why = choice.base, "the base; it fits this device"
    if look.needs and not chosen.startswith("Qwen/Qwen3"):  # it would get ChatML
        chosen, why = TELLING_BASE, f"the base; its chat template renders {rendered}"
    lines: list[Line] = [("model_name_or_path", chosen, why)]
    if choice.in_4bit:
        lines.append(("load_in_4bit", True, "the frozen base in 4 bits; the adapter is not"))
        lines.append(("bnb_4bit_quant_type", "nf4", ""))
    if chosen.startswith("Qwen/Qwen3") and look.conversational:
        lines.append(("eos_token", "<|im_end|>", "an assistant stops at the end of its turn"))
    return lines


def _data(data_path: str, look: Look, max_length: int) -> list[Line]:
    is_home = data_path.startswith("~")
    name = str(Path(data_path).expanduser()) if is_home else data_path
    lines: list[Line] = [("dataset_name", name, "")]
    if look.count >= 20:
        held_out = min(500, look.count // 20)
        lines.append(("test_split_size", held_out, "rows held out, drawn by the seed"))
        lines.append(("eval_strategy", "epoch", ""))
    over = float((look.lengths > max_length).mean())
    longer = f"{over:.1%} of the rows are longer and will be cut" if over else "no row is longer"
    longer += ", by this estimate" * look.measured.startswith("estimated")
    lines.append(("max_length", max_length, longer))
    return lines


def _training(count: int, fitting: int) -> list[Line]:
    """How it is trained.

    Args:
        count: rows.
        fitting: how many of the longest sequences fit into one step of one device.
    """
    global_batch = _power_of_two(min(16, max(1, count // 16)))
    per_device = min(global_batch, _power_of_two(max(1, fitting)))
    return [
        ("lora_r", 16, "size of the adapter"),
        ("lora_alpha", 32, ""),
        ("learning_rate", 2e-4, "for LoRA; a tenth of it with use_peft: false"),
        ("lr_scheduler_type", "cosine", ""),
        ("warmup_steps", 0.03, "a share of all steps"),
        ("num_train_epochs", 3 if count < 20_000 else 1, ""),
        ("per_device_train_batch_size", per_device, "lower it first if memory runs out"),
        ("per_device_eval_batch_size", per_device, ""),
        ("global_batch_size", global_batch, "sequences per step, on any number of devices"),
        ("logging_steps", 10, ""),
        ("save_strategy", "epoch", ""),
        ("save_total_limit", 1, ""),
        ("report_to", "none", ""),
        ("seed", 0, ""),
    ]


def _power_of_two(most: int) -> int:
    """The largest power of two up to a number."""
    return 1 << (most.bit_length() - 1)


def _one_line(text: str) -> str:
    """Text for a comment: a name with a newline in it must not end the comment."""
    return "".join(c if c.isprintable() else " " for c in text)


def _line(key: str, value: Any, comment: str) -> str:
    """One line of YAML; text that YAML would read otherwise is quoted."""
    written = str(value)
    if isinstance(value, bool):
        written = written.lower()
    elif isinstance(value, float) and value < 1e-2:
        written = f"{value:.1e}"
    elif isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z./][\w./-]*", value) and yaml.safe_load(value) == value
        written = value if is_plain else json.dumps(value, ensure_ascii=False)
    line = f"{key}: {written}"
    return (f"{line:<40}  # {comment}" if comment else line) + "\n"
