"""What a step costs, ours beside a bare TRL script in the same run, on a randomly initialised base.

    python -m tests.benchmarks.gpu                            0.5B and 1.5B, every stage, bf16 and QLoRA
    python -m tests.benchmarks.gpu --shape 0.5B --stage grpo --change use_vllm=true --write
    python -m tests.benchmarks.gpu --shape tiny --steps 3     on any machine, in a minute

Both train the same rows with the same arguments, one after the other in every round. A step's time is
the median of those after the first two. `--change KEY=VALUE` measures ours once more with it: before
and after. `--write` puts the rows into docs/benchmarks.md, with the device and the versions.
"""

import argparse
import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import (
    AutoConfig,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import get_quantization_config as quantization
from trl.trainer.utils import compute_flops_per_token, get_peak_flops

import toolkit
from tests import tiny
from tests.benchmarks.bare import length_reward, settings, trainer, versions
from toolkit.models.chatml import prepare_tokenizer
from toolkit.models.load import load_tokenizer, model_config
from toolkit.quiet import quiet_libraries
from toolkit.recipe import recipe_from_keywords
from toolkit.stages.resources import peak_rss

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "benchmarks.md"
# hidden, layers, heads, key-value heads, intermediate, vocabulary: Qwen2.5's config.json
SHAPES = {
    "0.5B": (896, 24, 14, 2, 4864, 151936),
    "1.5B": (1536, 28, 12, 2, 8960, 151936),
    "tiny": (64, 2, 4, 2, 128, 512),
}
STAGES = ("sft", "reward", "grpo", "ppo")
QLORA = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
# Forward passes of the base, or backward ones through it, that a token of a step goes through at
# least: a frozen base has no gradients of its weights. PPO: generation, policy and critic before and
# in the update, which has two backward passes.
PASSES = {"sft": 2, "reward": 2, "grpo": 3, "ppo": 7}
HEADER = "| base | stage | base held in | who | tokens/s | MFU | peak GB | step s | ours / bare TRL | steps |"


@dataclass(frozen=True)
class Size:
    """How much a step sees."""

    prompt: int
    completion: int
    batch: int
    steps: int
    rounds: int


@dataclass
class Measured:
    """What one trainer came to, over its rounds."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    peak: int = 0


class Steps(TrainerCallback):
    """Seconds of each optimizer step, with what the device has still to do."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(now() - self.begun)


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def save_base(shape: str, folder: Path) -> Path:
    """A random base of a shape of Qwen2.5 in bfloat16, with a tokenizer of bytes and ChatML."""
    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    words = tiny.tokenizer()
    prepare_tokenizer(words, conversational=True)
    torch.manual_seed(0)
    shape_of = Qwen2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=inner, vocab_size=vocabulary,
        tie_word_embeddings=True, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id, bos_token_id=None,
        dtype=torch.bfloat16,
    )  # fmt: skip
    Qwen2ForCausalLM(shape_of).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def rows_of(stage: str, size: Size) -> list[dict[str, Any]]:
    """Rows whose lengths differ by a half, all different."""
    draw = random.Random(0)

    def said(role: str, length: int) -> list[dict[str, str]]:
        number = draw.randint(max(1, length // 2), length)
        # a letter is a token
        return [{"role": role, "content": "".join(draw.choices(ascii_letters, k=number))}]

    rows = []
    for _ in range(size.batch * size.steps):
        row: dict[str, Any] = {"prompt": said("user", size.prompt)}
        if stage == "sft":
            row["completion"] = said("assistant", size.completion)
        elif stage == "reward":
            row |= {side: said("assistant", size.completion) for side in ("chosen", "rejected")}
        rows.append(row)
    return rows


def arguments(stage: str, size: Size) -> dict[str, Any]:
    """What both are given, in TRL's words, and what the device needs."""
    found = settings(stage, batch=size.batch, steps=size.steps, completion=size.completion)
    if not torch.cuda.is_available():
        found |= {"use_cpu": True, "bf16": False}
    return found


def ours(stage: str, base: Path, folder: Path, size: Size, given: dict[str, Any]) -> Any:
    """The stage's trainer as a recipe builds it."""
    more = {"reward_funcs": [length_reward]} if stage in ("grpo", "ppo") else {}
    return toolkit.build(
        stage, model_name_or_path=str(base), train_dataset=rows_of(stage, size),
        output_dir=str(folder), lora_r=16, **arguments(stage, size), **more, **given,
    )  # fmt: skip


def bare(stage: str, base: Path, folder: Path, size: Size, given: dict[str, Any]) -> Any:
    """The same by TRL alone; of PPO, which TRL has not, GRPO with the same completions."""
    named = {"model_name_or_path": str(base), "dataset_name": "x.jsonl"}
    quantized = {key: value for key, value in given.items() if key in QLORA}
    recipe = recipe_from_keywords("sft", **named, **quantized).stages[0]
    loading: dict[str, Any] = {"dtype": torch.bfloat16}
    if recipe["load_in_4bit"]:
        config = model_config(recipe)
        config.dtype = "bfloat16"
        loading["quantization_config"] = quantization(config)
        if torch.cuda.is_available():
            loading["device_map"] = {"": 0}
    given = arguments("grpo" if stage == "ppo" else stage, size) | {"output_dir": str(folder)}
    if stage in ("sft", "reward"):
        given["max_length"] = None
    rows = Dataset.from_list(rows_of(stage, size))
    return trainer(
        "grpo" if stage == "ppo" else stage, base, load_tokenizer(base), rows, given, **loading
    )


def measure(make: Callable[..., Any], into: Measured, *given: Any) -> None:
    """Train once, and note its steps, its tokens and its peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(*given[:2], Path(folder), *given[2:])
        steps = Steps()
        trainer.add_callback(steps)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    after = steps.seconds[2:] or steps.seconds
    into.seconds.append(statistics.median(after))
    counted = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    into.tokens.append(counted[-1] / len(steps.seconds))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss()
    into.peak = max(into.peak, peak)


def lines(
    shape: str, stage: str, qlora: bool, size: Size, changes: dict[str, Any]
) -> Iterator[str]:
    """The rows of one stage: bare TRL, ours, and ours with every change."""
    with tempfile.TemporaryDirectory() as folder:
        base = save_base(shape, Path(folder) / "base")
        config = AutoConfig.from_pretrained(base)
        given = dict(QLORA) if qlora else {}
        kinds: dict[str, tuple[Any, dict[str, Any]]] = {
            "bare TRL" if stage != "ppo" else "bare TRL, GRPO": (bare, given),
            "ours": (ours, given),
        }
        kinds |= {
            f"ours, {key}={value}": (ours, given | {key: value}) for key, value in changes.items()
        }
        found = {name: Measured() for name in kinds}
        for number in range(size.rounds):
            order = list(kinds) if number % 2 else list(reversed(kinds))
            for name in order:
                make, keys = kinds[name]
                measure(make, found[name], stage, base, size, keys)
    first = next(iter(found.values()))
    for name, each in found.items():
        seconds, tokens = statistics.median(each.seconds), statistics.median(each.tokens)
        theirs = zip(each.seconds, each.tokens, first.seconds, first.tokens, strict=True)
        ratio = statistics.median((b / a) * (m / n) for a, m, b, n in theirs)
        length = size.prompt + size.completion
        flops = (
            compute_flops_per_token(config, length)
            / 3
            * PASSES["grpo" if "GRPO" in name else stage]
        )
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        most = get_peak_flops(device, "bfloat16")
        used = f"{flops * tokens / seconds / most:.1%}" if most else "not known"
        yield (
            f"| Qwen2.5 {shape} | {stage} | {'NF4, double' if qlora else 'bf16'} | {name} | "
            f"{tokens / seconds:,.0f} | {used} | {each.peak / 1e9:.2f} | {seconds:.3f} | "
            f"{ratio:.2f} | {size.rounds} × {size.steps} |"
        )


def about() -> str:
    """The device and the versions."""
    gpu = torch.cuda.is_available()
    device = (
        torch.cuda.get_device_name() if gpu else "CPU, where peak GB is that of the process so far"
    )
    return f"{device}; {versions()}"


def write(rows: list[str], size: Size, path: Path) -> None:
    """Append the rows to the page, under the day, the device and the versions."""
    title = (
        "# Benchmarks on an accelerator\n\nWritten by `python -m tests.benchmarks.gpu --write`.\n"
    )
    text = path.read_text(encoding="utf-8") if path.is_file() else title
    seen = f"prompts of up to {size.prompt} tokens, completions of {size.completion}, {size.batch} a step"
    divider = "|" + "---|" * (HEADER.count("|") - 1)
    table = "\n".join([HEADER, divider, *rows])
    text += f"\n## {time.strftime('%Y-%m-%d', time.gmtime())}, {about()}\n\n{seen}.\n\n{table}\n"
    path.write_text(text, encoding="utf-8")


def main(words: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--shape", action="append", choices=list(SHAPES))
    asked.add_argument("--stage", action="append", choices=STAGES)
    asked.add_argument("--base", action="append", choices=("bf16", "qlora"))
    asked.add_argument("--change", action="append", default=[], metavar="KEY=VALUE")
    for key, number in (
        ("prompt", 256),
        ("completion", 256),
        ("batch", 8),
        ("steps", 12),
        ("rounds", 3),
    ):
        asked.add_argument(f"--{key}", type=int, default=number)
    asked.add_argument("--write", action="store_true")
    given = asked.parse_args(words)
    quiet_libraries()
    size = Size(given.prompt, given.completion, given.batch, given.steps, given.rounds)
    changes = {
        key: yaml.safe_load(value) for key, _, value in (c.partition("=") for c in given.change)
    }
    sys.stdout.write(f"{about()}\n{HEADER}\n")
    found: list[str] = []
    for shape in given.shape or ("0.5B", "1.5B"):
        for stage in given.stage or STAGES:
            for base in given.base or ("bf16", "qlora"):
                for line in lines(shape, stage, base == "qlora", size, changes):
                    found.append(line)
                    sys.stdout.write(f"{line}\n")
                    sys.stdout.flush()
    if given.write:
        write(found, size, DOCS)


if __name__ == "__main__":
    main()
