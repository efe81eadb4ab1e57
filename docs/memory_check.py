"""The estimate of memory that `toolkit check` makes, beside what a stage takes on a CPU.

    python docs/memory_check.py              every configuration, each in a fresh process
    python docs/memory_check.py --only 3     one of them

One process makes a random base, one runs the check on it, and one trains two optimizer steps of the
real stage. They are forked after the libraries are imported. What a stage takes is its largest
resident set (VmHWM, Linux), which has in it what Python and the libraries hold.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

BASE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 1024, "vocab_size": 32000, "tie_word_embeddings": True}  # fmt: skip
WIDE = BASE | {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048}
QLORA = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# what it is, the stage, the base's shape, its precision, tokens of a sequence, keys
TABLE: tuple[tuple[str, str, dict[str, Any], str, int, dict[str, Any]], ...] = (
    ("LoRA", "sft", BASE, "float32", 128, {"per_device_train_batch_size": 4}),
    ("LoRA, longer, fast: false", "sft", BASE, "float32", 512,
     {"per_device_train_batch_size": 2, "fast": False}),
    ("LoRA, checkpointed", "sft", BASE, "float32", 128,
     {"per_device_train_batch_size": 4, "gradient_checkpointing": True}),
    ("LoRA", "sft", WIDE, "float32", 128, {"per_device_train_batch_size": 2}),
    ("LoRA, bfloat16", "sft", WIDE, "bfloat16", 64, {"per_device_train_batch_size": 2}),
    ("QLoRA", "sft", WIDE, "float32", 64, {"per_device_train_batch_size": 2} | QLORA),
    ("QLoRA, no checkpointing", "sft", BASE, "float32", 128,
     {"per_device_train_batch_size": 4, "gradient_checkpointing": False} | QLORA),
    ("all weights", "sft", BASE, "float32", 128,
     {"per_device_train_batch_size": 4, "use_peft": False}),
    ("LoRA", "reward", BASE, "float32", 256, {"per_device_train_batch_size": 4}),
    ("LoRA, checkpointed", "dpo", BASE, "float32", 128,
     {"per_device_train_batch_size": 2, "gradient_checkpointing": True}),
    ("LoRA", "grpo", BASE, "float32", 64,
     {"per_device_train_batch_size": 8, "num_generations": 8, "max_completion_length": 16}),
    ("LoRA, many completions, fast: false", "grpo", BASE, "float32", 128,
     {"per_device_train_batch_size": 2, "num_generations": 8, "generation_batch_size": 32,
      "gradient_accumulation_steps": 16, "max_completion_length": 8, "max_steps": 1,
      "fast": False}),
    ("QLoRA", "grpo", BASE, "float32", 64,
     {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8} | QLORA),
    ("LoRA", "ppo", BASE, "float32", 64,
     {"per_device_train_batch_size": 4, "max_completion_length": 16}),
    # what follows was not looked at when the constants of toolkit/preflight/heap.py were chosen
    ("LoRA, checkpointed", "reward", WIDE, "float32", 96,
     {"per_device_train_batch_size": 3, "gradient_checkpointing": True}),
    ("LoRA, no checkpointing, fast: false", "dpo", WIDE, "float32", 96,
     {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "fast": False}),
    ("LoRA, sampling is the peak", "grpo", WIDE, "float32", 32,
     {"per_device_train_batch_size": 1, "num_generations": 8, "generation_batch_size": 64,
      "gradient_accumulation_steps": 64, "max_completion_length": 24, "max_steps": 1}),
    ("QLoRA", "ppo", WIDE, "float32", 48,
     {"per_device_train_batch_size": 2, "max_completion_length": 16} | QLORA),
    ("QLoRA", "dpo", WIDE, "float32", 96, {"per_device_train_batch_size": 1} | QLORA),
    ("LoRA, bf16: true", "sft", BASE, "float32", 128,
     {"per_device_train_batch_size": 4, "bf16": True}),
    ("LoRA, bf16: true", "sft", WIDE, "float32", 96,
     {"per_device_train_batch_size": 2, "bf16": True}),
    ("LoRA, bf16: true", "grpo", WIDE, "float32", 64,
     {"per_device_train_batch_size": 8, "num_generations": 8, "max_completion_length": 16,
      "bf16": True}),
    ("LoRA, bf16: true", "reward", BASE, "float32", 256,
     {"per_device_train_batch_size": 4, "bf16": True}),
    ("LoRA, bf16: true", "dpo", WIDE, "float32", 96,
     {"per_device_train_batch_size": 2, "bf16": True}),
    ("LoRA, bf16: true", "ppo", BASE, "float32", 64,
     {"per_device_train_batch_size": 4, "max_completion_length": 16, "bf16": True}),
    ("LoRA, bfloat16, bf16: true", "grpo", WIDE, "bfloat16", 64,
     {"per_device_train_batch_size": 8, "num_generations": 8, "max_completion_length": 16,
      "bf16": True}),
)  # fmt: skip


def save_base(shape: dict[str, Any], dtype: str, folder: Path) -> None:
    """A random Llama, and a tokenizer of numbered words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    known = {f"w{index}": index for index in range(200)}
    core = Tokenizer(models.WordLevel(known, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="w1", pad_token="w2", unk_token="w0"
    )
    config = LlamaConfig(**shape, eos_token_id=1, pad_token_id=2, bos_token_id=None)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    words.save_pretrained(folder)


def rows_of(stage: str, length: int) -> list[dict[str, Any]]:
    """Rows of one length in tokens that differ in the first: what they share is computed once.

    No word begins with a special token, which would be split off.
    """
    text = " ".join(["w7"] * (length // 2 - 1))
    rest = " ".join(["w8"] * (length - length // 2 - 1))
    starts = [f"w{number} {text}" for number in range(30, 94)]
    if stage in ("grpo", "ppo"):
        return [{"prompt": f"{start} {rest} w8"} for start in starts]
    if stage == "sft":
        return [{"prompt": start, "completion": f" {rest}"} for start in starts]
    return [
        {"prompt": f"{start} w8", "chosen": f" w9 {rest[:-3]}", "rejected": f" {rest}"}
        for start in starts
    ]


def reward(completions: list[str], **columns: Any) -> list[float]:
    """Something that differs."""
    return [float(len(text) % 7) for text in completions]


def status(name: str) -> int:
    """A number of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) * 1024


def recipe_of(number: int, folder: Path) -> Any:
    """The recipe of a configuration, and its data."""
    from toolkit.recipe import recipe_from_keywords

    _, stage, _, _, length, keys = TABLE[number]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(stage, length)))
    given: dict[str, Any] = {
        "model_name_or_path": str(folder / "base"), "dataset_name": str(file), "max_steps": 2,
        "output_dir": str(folder / "run"), "report_to": "none", "save_strategy": "no", "lora_r": 16,
        "bf16": False,
    }  # fmt: skip
    given |= (
        {"reward_funcs": [f"{Path(__file__)}:reward"]}
        if stage in ("grpo", "ppo")
        else {"max_length": None}
    )
    return recipe_from_keywords(stage, **given | keys)


def estimate(number: int, folder: Path) -> dict[str, Any]:
    """What `toolkit check` says of a configuration's memory."""
    from toolkit.preflight import checks
    from toolkit.preflight.look import Options

    found = checks.check(recipe_of(number, folder), Options())
    return found.facts[TABLE[number][1]]["memory"]


def measure(number: int, folder: Path) -> dict[str, Any]:
    """What a configuration took in this process."""
    from toolkit.pipeline import stage_module

    recipe = recipe_of(number, folder)
    libraries = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    module = stage_module(recipe.stages[0].stage)
    trainer = module.build(recipe.stages[0], output_dir=folder / "run", earlier={})
    loaded = status("VmHWM")
    trainer.train()
    return {"libraries": libraries, "loaded": loaded, "measured": status("VmHWM")}


def row(found: dict[str, Any]) -> str:
    """A line of the table in docs/preflight.md."""
    own, taken = (found[key] - found["libraries"] for key in ("peak", "measured"))
    cells = [
        found["stage"], found["what"], f"{found['rows']} × {found['length']}",
        f"{found['measured'] / 1e6:,.0f}", f"{found['peak'] / 1e6:,.0f}",
        f"{found['peak'] / found['measured'] - 1:+.1%}",
        f"{taken / 1e6:,.0f}", f"{own / 1e6:,.0f}", f"{own / taken - 1:+.1%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def in_a_process(work: Any, *given: Any) -> Any:
    """What a function gives in a process of its own, which has the libraries of this one."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(work(*given)))
    child.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        child.join()


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--only", type=int, action="append")
    asked = arguments.parse_args()
    from toolkit.pipeline import stage_module

    for stage in dict.fromkeys(each[1] for each in TABLE):
        stage_module(stage)
    for number in asked.only or range(len(TABLE)):
        with tempfile.TemporaryDirectory() as place:
            in_a_process(save_base, TABLE[number][2], TABLE[number][3], Path(place) / "base")
            found = {"what": TABLE[number][0], "stage": TABLE[number][1]}
            found |= in_a_process(estimate, number, Path(place))
            found |= in_a_process(measure, number, Path(place))
        sys.stdout.write(f"{row(found)}\n")
        sys.stderr.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
