"""One stack training one stage in a process of its own, for `tests.benchmarks.cpu`.

    python -m tests.benchmarks.cpu_step FOLDER SHAPE STAGE STACK STEPS
    python -m tests.benchmarks.cpu_step FOLDER SHAPE peak

What it loads before the trainer is what a script of that stack loads: for bare TRL nothing of ours.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import bare
from tests.benchmarks.cpu_rows import MAX_LENGTH, SHAPES, Shape, settings_of
from tests.benchmarks.scaling import FOUND, processor_seconds

PACKED = {"packing": True, "dataset_kwargs": {"skip_prepare_dataset": True}}
STACKS: dict[str, dict[str, Any]] = {
    "trl": {"use_cpu": True},
    "trl-best": {"use_cpu": True, "gradient_checkpointing": False},
    "ours": {},
    "ours-fp32": {"bf16": False},
    "ours-bf16-base": {"dtype": "bfloat16"},
}
"""What a stack adds to the arguments of all: TRL computes in bf16 by itself, ours where that is faster."""


def build(folder: Path, shape: Shape, stage: Any, stack: str, steps: int) -> Any:
    """The trainer of a stack."""
    rows = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
    base = folder / "base"
    given = settings_of(stage, shape, steps) | STACKS[stack]
    given["output_dir"] = str(folder / f"run-{stage}-{stack}")
    if stack.startswith("trl"):
        from datasets import Dataset
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(base)
        data: Any = Dataset.from_list(rows)
        if stack == "trl-best" and stage == "sft":
            data, packs = bare.packed(rows, tokenizer, shape.batch, MAX_LENGTH)
            given |= PACKED | {"per_device_train_batch_size": 1}
            given["gradient_accumulation_steps"] = packs
        return bare.trainer(stage, base, tokenizer, data, given)
    import toolkit

    more = {"reward_funcs": [bare.length_reward]} if stage in ("grpo", "ppo") else {}
    # PEFT's own, and so a bare script's, is no dropout
    return toolkit.build(
        stage, model_name_or_path=str(base), train_dataset=rows, lora_r=16, lora_dropout=0.0,
        **given, **more,
    )  # fmt: skip


class Watch:
    """Processor seconds of every step from the end of the one before, and of their parts.

    Args:
        trainer: has a callback added, and what gives it a batch measured.
        sampled: whether its batches are completions that it samples itself.
    """

    def __init__(self, trainer: Any, *, sampled: bool):
        from transformers import TrainerCallback

        self.ends: list[float] = []
        self.generation: list[float] = []
        self.wall = 0.0
        watch, spent = self, [0.0]

        class Ends(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch.ends.append(processor_seconds())
                watch.generation.append(spent[0])
                spent[0] = 0.0
                if len(watch.ends) == 1:
                    watch.wall = time.time() - psutil.Process().create_time()

        trainer.add_callback(Ends())
        if sampled:
            prepare = trainer._prepare_inputs

            def measured(*given: Any, **named: Any) -> Any:
                begun = processor_seconds()
                found = prepare(*given, **named)
                spent[0] += processor_seconds() - begun
                return found

            trainer._prepare_inputs = measured

    def as_dict(self) -> dict[str, Any]:
        """Seconds of the steps after the first, and to the end of the first since the start."""
        pairs = zip(self.ends[:-1], self.ends[1:], strict=True)
        return {
            "steps": [after - before for before, after in pairs],
            "generation": self.generation[1:],
            "first": self.ends[0],
            "first_wall": self.wall,
        }


def trained(folder: Path, shape: Shape, stage: str, stack: str, steps: int) -> dict[str, Any]:
    """Train, and say what it took."""
    from transformers import PrinterCallback

    trainer = build(folder, shape, stage, stack, steps)
    watch = Watch(trainer, sampled=stage in ("grpo", "ppo"))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    from toolkit.stages.resources import peak_rss  # after what it measures

    found = watch.as_dict() | {"peak": peak_rss(), "loss": trainer.state.log_history[0]["loss"]}
    found["trained"] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if stage == "sft":
        data = trainer.train_dataset
        found["real"] = sum(map(len, data["input_ids"])) // steps
        found["labelled"] = (
            sum(label != -100 for labels in data["labels"] for label in labels) // steps
        )
    return found


def peak(shape: Shape, tries: int = 12) -> dict[str, float]:
    """Operations a second of the fastest product of 2048 rows with a weight of the body."""
    import torch

    found = {}
    for name in ("float32", "bfloat16"):
        best = 0.0
        for a, b in set(shape.linears):
            left = torch.randn(2048, a).to(getattr(torch, name))
            right = torch.randn(b, a).to(left.dtype).T
            for _ in range(tries):
                begun = time.process_time()
                torch.mm(left, right)
                spent = time.process_time() - begun
                best = max(best, 2 * 2048 * a * b / max(spent, 1e-9))
        found[name] = best
    return found


def find(folder: str, shape: str, stage: str, stack: str = "", steps: str = "") -> dict[str, Any]:
    """What is asked of a process, in the words of its command line."""
    if stage == "peak":
        return peak(SHAPES[shape])
    return trained(Path(folder), SHAPES[shape], stage, stack, int(steps))


if __name__ == "__main__":
    print(FOUND + json.dumps(find(*sys.argv[1:])), flush=True)
