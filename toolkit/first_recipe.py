"""`toolkit init`: look at the data and the device, and write a recipe that runs."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from toolkit.data.formats import to_standard
from toolkit.data.sequences import tokenize
from toolkit.data.tables import load_table
from toolkit.errors import ToolkitError, UsageError
from toolkit.models import chatml
from toolkit.models.load import load_tokenizer

CHARACTERS_PER_TOKEN = 3.5  # of English text with a vocabulary of common size, rounded down
MEASURED_ROWS = 2000
GIB = 1024**3


@dataclass(frozen=True)
class Choice:
    """What suits a device: a base, and how it is trained.

    Attributes:
        device: the device in words.
        base: a Hub id.
        in_4bit: whether the base is held in 4 bits.
        tokens: how many tokens one step of one device can hold.
        length: the largest `max_length` that is sensible.
        packs: whether short rows are packed together.
    """

    device: str
    base: str
    in_4bit: bool
    tokens: int
    length: int
    packs: bool


@dataclass(frozen=True)
class Look:
    """What the rows are like.

    Attributes:
        count: how many there are.
        form: "messages", "prompt_completion" or "text".
        lengths: tokens of each row that was measured.
        measured: how they were counted, in words.
        notes: what was converted or is not used.
    """

    count: int
    form: str
    lengths: np.ndarray
    measured: str
    notes: list[str]


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
        UsageError: if the recipe's file is there already.
        DataError: if a row is wrong.
        HubError: if the Hub does not give the data.
    """
    path = Path(output) if output else Path(f"sft_{_stem(data_path)}.yaml")
    if path.exists():
        raise UsageError(f"{path} is there already; name another file with --output")
    choice = choose()
    look = look_at(data_path, model_name_or_path or choice.base)
    text = recipe_text(data_path, look, choice, model_name_or_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as stream:
        stream.write(text)
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
            return Choice(words, "Qwen/Qwen3-4B-Base", False, 32768, 4096, True)
        if memory >= 14:
            return Choice(words, "Qwen/Qwen3-4B-Base", True, 8192, 2048, False)
        return Choice(words, "Qwen/Qwen3-0.6B-Base", False, 4096, 2048, False)
    if torch.backends.mps.is_available():
        return Choice("Apple GPU (MPS)", "Qwen/Qwen3-0.6B-Base", False, 4096, 2048, False)
    return Choice("CPU", "HuggingFaceTB/SmolLM2-135M", False, 1024, 1024, False)


def look_at(data_path: str, base: str) -> Look:
    """Check every row, and measure the length of some.

    Args:
        data_path: a file, a folder or a Hub id.
        base: counts tokens if its tokenizer is on this disk; else characters are counted.
    """
    table, origin = load_table(data_path)
    rows, form, notes = to_standard(table, origin=data_path)
    some = rows.select(range(0, len(rows), -(-len(rows) // MEASURED_ROWS)))
    lengths = _tokens(some, form, base) if Path(base).is_dir() else None
    measured = f"as {base} counts"
    if lengths is None:
        measured = "estimated from characters"
        lengths = np.array([_characters(row, form) for row in some]) / CHARACTERS_PER_TOKEN
    return Look(len(rows), form, lengths, measured, [*origin.get("notes", ()), *notes])


def _tokens(rows: Dataset, form: str, base: str) -> np.ndarray | None:
    """Tokens of each sequence; None if the base's tokenizer cannot count these rows."""
    try:
        tokenizer = load_tokenizer(base)
        chatml.prepare_tokenizer(
            tokenizer, conversational=form == "messages" or isinstance(rows[0].get("prompt"), list)
        )
        found = tokenize(rows, tokenizer, format=form, max_length=None)
    except ToolkitError:
        return None
    return np.array([len(ids) for ids in found.dataset["input_ids"]])


def _characters(row: dict[str, Any], form: str) -> int:
    columns = {"messages": ("messages",), "text": ("text",)}.get(form, ("prompt", "completion"))
    values = [row[column] for column in columns]
    return sum(
        len(v) if isinstance(v, str) else len(json.dumps(v, ensure_ascii=False)) for v in values
    )


def recipe_text(data_path: str, look: Look, choice: Choice, base: str | None) -> str:
    """The recipe, with a comment where a choice was made."""
    longest, most = float(look.lengths.max()), float(np.percentile(look.lengths, 99))
    max_length = min(choice.length, max(64, -(-int(most * 1.1) // 64) * 64))
    over = int((look.lengths > max_length).sum())
    room = max(1, choice.tokens // max_length)
    per_device = 1 << min(4, room.bit_length() - 1)
    global_batch = max(per_device, 16 if look.count >= 500 else 8)
    epochs = 3 if look.count < 20_000 else 1
    held_out = min(500, max(1, look.count // 20)) if look.count >= 20 else 0
    trained = {
        "messages": "the assistant's turns",
        "prompt_completion": "the completion",
    }.get(look.form, "every token")
    lines = [
        f"# SFT on {data_path}: {look.count:,} rows of {_words(look.form)}; {trained} are trained."
        if look.form == "messages"
        else f"# SFT on {data_path}: {look.count:,} rows of {_words(look.form)}; {trained} is trained.",
        f"# Lengths in tokens ({look.measured}): median {np.median(look.lengths):,.0f}, "
        f"99 % within {most:,.0f}, longest {longest:,.0f}.",
        f"# Written for: {choice.device}.",
        *(f"# Note: {note}" for note in look.notes),
        "stage: sft",
        _line("output_dir", f"runs/sft_{_stem(data_path)}"),
        "",
        _line(
            "model_name_or_path",
            base or choice.base,
            "" if base else "the base; it fits this device",
        ),
    ]
    if choice.in_4bit and base is None:
        lines += [
            _line("load_in_4bit", True, "the frozen base in 4 bits; the adapter is not"),
            _line("bnb_4bit_quant_type", "nf4"),
        ]
    if base is None and choice.base.startswith("Qwen/Qwen3") and look.form == "messages":
        lines.append(_line("eos_token", "<|im_end|>", "an assistant stops at the end of its turn"))
    lines += ["", _line("dataset_name", _written(data_path))]
    if held_out:
        lines += [
            _line("test_split_size", held_out, "rows held out, drawn by the seed"),
            _line("eval_strategy", "epoch"),
        ]
    cut = (
        f"{over / len(look.lengths):.1%} of the rows are longer and will be cut"
        if over
        else "no row is longer"
    )
    lines += [
        _line("max_length", max_length, cut),
        "",
        _line("lora_r", 16, "size of the adapter"),
        _line("lora_alpha", 32),
        _line("learning_rate", 2e-4, "for LoRA; a tenth of it with use_peft: false"),
        _line("lr_scheduler_type", "cosine"),
        _line("warmup_steps", 0.03, "a share of all steps"),
        _line("num_train_epochs", epochs),
        _line("per_device_train_batch_size", per_device, "lower it first if memory runs out"),
        _line("global_batch_size", global_batch, "sequences per step, on any number of devices"),
    ]
    if choice.packs:
        lines.append(
            _line("packing", True, "short rows share a sequence, without seeing each other")
        )
    lines += [
        _line("logging_steps", 10),
        _line("save_strategy", "epoch"),
        _line("save_total_limit", 1),
        _line("report_to", "none"),
        _line("seed", 0),
    ]
    return "\n".join(lines) + "\n"


def _words(form: str) -> str:
    return {"prompt_completion": "prompt and completion"}.get(form, form)


def _written(data_path: str) -> str:
    """The path as a recipe names it, with `~` spelt out; a Hub id stays itself."""
    return str(Path(data_path).expanduser()) if data_path.startswith("~") else data_path


def _line(key: str, value: Any, comment: str = "") -> str:
    """One line of YAML; text that YAML could read otherwise is quoted."""
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float):
        value = f"{value:.1e}" if value < 1e-2 else str(value)
    elif isinstance(value, str) and not re.fullmatch(r"[A-Za-z./][\w./-]*", value):
        value = json.dumps(value, ensure_ascii=False)
    line = f"{key}: {value}"
    return f"{line:<40}  # {comment}" if comment else line
