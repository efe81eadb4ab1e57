"""How cost grows: with rows, the length of a sequence, completions of a prompt, and adapters.

    python -m tests.benchmarks.scaling rows --at 1000 10000 100000 1000000
    python -m tests.benchmarks.scaling length completions adapters

Seconds are the processor's, of all processes together: they do not depend on what else the machine
does. Memory is the largest sum so far, over all processes of a table, of
what each has to itself and its share of what it has in common with others (PSS, looked at twice a second),
files mapped into memory included.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

POINTS = {
    "rows": (1000, 10_000, 100_000, 1_000_000),
    "length": (128, 512, 2048, 8192),
    "completions": (4, 16, 64),
    "adapters": (1, 2, 4, 8),
}
STEPS = 4
FOUND = "found "  # how the line of a point begins
SYLLABLES = [c + v for c in "bcdfghklmnprstvw" for v in "aeiou"]
VOCABULARY = 8000


def words() -> list[str]:
    """Words that nobody speaks."""
    draw = random.Random(1)
    return ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(5000)]


def write_rows(path: Path, count: int) -> Path:
    """Conversations of one or two turns, some 100 tokens each, all different."""
    draw, known = random.Random(0), words()

    def said(role: str, least: int, most: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(draw.choices(known, k=draw.randint(least, most)))}

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            turns = [
                message
                for _ in range(draw.choice((1, 1, 2)))
                for message in (said("user", 8, 30), said("assistant", 10, 60))
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def save_base(folder: Path, **shape: Any) -> Path:
    """A tiny random base with a tokenizer that was trained on such words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    draw, known = random.Random(2), words()
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator([" ".join(draw.choices(known, k=200)) for _ in range(500)], trainer)
    spoken = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": 0, **shape,
        }
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    spoken.save_pretrained(folder)
    return folder


def processor_seconds() -> float:
    """Of this process and of those it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def prepared(folder: Path, count: int) -> dict[str, Any]:
    """Prepare rows as stage sft does."""
    from toolkit.recipe import recipe_from_keywords
    from toolkit.stages.prepared import prepare

    given: dict[str, Any] = {"model_name_or_path": str(folder / "base"), "max_length": 1024}
    given["dataset_name"] = str(folder / f"rows-{count}.jsonl")
    recipe = recipe_from_keywords("sft", **given).stages[0]
    begun, start = time.perf_counter(), processor_seconds()
    report = prepare(recipe).sequences["train"].report
    assert report.rows == count
    seconds = processor_seconds() - start
    return {
        "tokens": report.tokens, "seconds": seconds, "wall": time.perf_counter() - begun,
        "rows a second and core": count / seconds,
    }  # fmt: skip


def measured_rows(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """The first preparation, and the second."""
    write_rows(folder / f"rows-{count}.jsonl", count)
    for run in ("first", "second"):
        for found in alone(folder, "rows", [count]):
            yield {"rows": count, "run": run, **found}


def alone(folder: Path, what: str, points: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Measure some points in a process of their own, with the most memory that it took by then."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.scaling", what, "--one", str(folder)]
    command += ["--at", *map(str, points)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        most = [0]

        def look() -> None:
            while child.poll() is None:
                most[0] = max(most[0], shared_memory(child.pid))
                time.sleep(0.5)

        threading.Thread(target=look, daemon=True).start()
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(FOUND):
                yield json.loads(line.removeprefix(FOUND)) | {"peak MB": most[0] / 1e6}
    assert child.returncode == 0


def shared_memory(number: int) -> int:
    """The proportional set size of a process and its children, in bytes."""
    found = 0
    try:
        process = psutil.Process(number)
        for each in [process, *process.children(recursive=True)]:
            found += each.memory_full_info().pss
    except psutil.Error:
        pass
    return found


def steps_of(trainer: Any) -> dict[str, Any]:
    """Train, and say what a step after the first takes."""
    from transformers import TrainerCallback

    spent = []

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = processor_seconds()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            spent.append(processor_seconds() - self.begun)

    trainer.add_callback(Steps())
    trainer.train()
    return {"seconds a step": statistics.median(spent[1:])}


def long_sequences(folder: Path, tokens: int) -> dict[str, Any]:
    """Steps of one sequence each."""
    import toolkit
    from toolkit.models.load import load_tokenizer

    draw, known, spoken = random.Random(3), words(), load_tokenizer(folder / "base")
    texts = [" ".join(draw.choices(known, k=tokens)) for _ in range(STEPS)]
    rows = [{"text": spoken.decode(spoken(text).input_ids[: tokens - 2])} for text in texts]
    trainer = toolkit.build(
        "sft", model_name_or_path=str(folder / "base"), train_dataset=rows, max_length=8192,
        output_dir=str(folder / "run"), per_device_train_batch_size=1, max_steps=STEPS,
        save_strategy="no",
    )  # fmt: skip
    found = steps_of(trainer)
    return found | {"seconds a 1,000 tokens": found["seconds a step"] / tokens * 1000}


def many_completions(folder: Path, count: int) -> dict[str, Any]:
    """Steps of one prompt each, with completions of 32 tokens."""
    import toolkit

    trainer = toolkit.build(
        "grpo", model_name_or_path=str(folder / "base"), max_completion_length=32,
        train_dataset=[{"prompt": text} for text in words()[:STEPS]],
        reward_funcs=[lambda completion_ids, **_: [sum(ids) % 97 / 97 for ids in completion_ids]],
        num_generations=count, per_device_train_batch_size=count, max_steps=STEPS,
        output_dir=str(folder / "run"), save_strategy="no", gradient_accumulation_steps=1,
    )  # fmt: skip
    found = steps_of(trainer)
    return found | {"seconds a completion": found["seconds a step"] / count}


def many_adapters(folder: Path, count: int) -> dict[str, Any]:
    """An exam of some adapters of one base, of 32 questions each."""
    import toolkit

    given: dict[str, Any] = {"model_name_or_path": str(folder / "base")}
    first = folder / "adapter"
    rows = [{"prompt": f"{word}?", "completion": word} for word in words()[:32]]
    if not first.exists():
        toolkit.sft(**given, train_dataset=rows, output_dir=str(first), max_steps=2, lora_r=16)
    names = [str(folder / f"adapter-{number}") for number in range(count)]
    for name in names:
        shutil.copytree(first, name, dirs_exist_ok=True)
    task = {"name": "words", "rows": [{"question": w, "answer": "1"} for w in words()[:32]]}
    begun = processor_seconds()
    toolkit.evaluate(
        **given, of=names, tasks=[task], max_completion_length=32, output_dir=str(folder / f"exam-{count}"),
        num_generations=1,
    )  # fmt: skip
    seconds = processor_seconds() - begun
    size = (first / "adapter_model.safetensors").stat().st_size
    return {"seconds": seconds, "seconds an adapter": seconds / count, "adapter MB": size / 1e6}


ONE = {
    "rows": prepared, "length": long_sequences, "completions": many_completions,
    "adapters": many_adapters,
}  # fmt: skip


def lines_of(what: str, folder: Path, points: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The lines of one table."""
    if what == "rows":
        for count in points:
            yield from measured_rows(folder, count)
    else:
        for at, found in zip(points, alone(folder, what, points), strict=True):
            yield {what: at, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", choices=[*POINTS])
    parser.add_argument("--at", type=int, nargs="+")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        for at in asked.at:
            print(FOUND + json.dumps(ONE[asked.what[0]](asked.one, at)), flush=True)
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        base = Path(folder, "base")
        save_base(base)
        for what in asked.what:
            for row in lines_of(what, Path(folder), asked.at or POINTS[what]):
                shown = (
                    f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                )
                print(what, *shown, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
