"""What a launch of several processes does besides training: `accelerate launch … FOLDER`.

Rows that are prepared once, GRPO with a fixed sampler, and which process writes what.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset

import toolkit
from tests import tiny_ppo
from toolkit.data.once import mapped, together
from toolkit.models import chatml
from toolkit.models.load import load_tokenizer
from toolkit.stages.processes import join, process_index

GRPO: dict[str, Any] = {
    "global_batch_size": 8, "num_generations": 4, "max_steps": 4, "lora_r": 4, "lora_dropout": 0.0,
    "learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "sgd", "logging_steps": 1,
    "save_strategy": "no", "seed": 3, "max_completion_length": 12, "max_grad_norm": 0.0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "mean of sequences, with a reference": {
        "loss_type": "grpo", "beta": 0.1, "num_iterations": 2,
    },
}  # fmt: skip


def grpo(base: Path, directory: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What is logged, and every trained tensor at the end.

    Args:
        base: its folder.
        directory: where the trainer writes.
        case: one of CASES, and what a test adds to it.
    """
    words = load_tokenizer(base, padding_side="left")
    chatml.prepare_tokenizer(words, conversational=True)
    trainer = toolkit.build(
        "grpo", model_name_or_path=str(base), output_dir=str(directory),
        train_dataset=tiny_ppo.prompts(16), reward_funcs=[tiny_ppo.odd],
        rollout_func=tiny_ppo.fixed(words), **GRPO | case,
    )  # fmt: skip
    trainer.train()
    weights = {n: w.detach() for n, w in trainer.model.named_parameters() if w.requires_grad}
    return {"log": trainer.state.log_history, "weights": weights}


def doubled(batch: dict[str, list[int]], log: str) -> dict[str, list[int]]:
    """Twice each number; that it was computed, and where, is noted."""
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return {"number": [2 * number for number in batch["number"]]}


def prepared(folder: Path) -> list[int]:
    """Rows that each process needs, of which one computes them."""
    rows = Dataset.from_dict({"number": list(range(6))})
    keys: dict[str, Any] = {
        "fingerprint": f"test{os.getppid()}", "batched": True,
        "fn_kwargs": {"log": str(folder / "computed_by")},
    }  # fmt: skip
    with together():
        found = mapped(rows, doubled, **keys)
    if process_index() == 0:  # one alone waits for nobody
        assert mapped(found, doubled, **keys)["number"][1] == 4
    assert found._fingerprint == f"test{os.getppid()}"
    return found["number"][:]


def watched_writes(below: Path) -> list[str]:
    """A list that from now on takes every file below a folder that this process opens to write."""
    written: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | os.PathLike):
            path, mode, flags = Path(args[0]).absolute(), args[1], args[2]
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "r") & set(
                "wax+"
            )
            if below in path.parents and writes:
                written.append(path.relative_to(below).as_posix())

    sys.addaudithook(watch)
    return written


def main(folder: Path) -> None:
    """Do all of it, and write what each process has found."""
    join(600)
    base = Path(json.loads((folder / "base.json").read_text()))
    run = folder / "run"
    written = watched_writes(run)
    toolkit.sft(
        model_name_or_path=str(base), dataset_name=str(folder / "rows.jsonl"), output_dir=str(run),
        test_split_size=4, lora_r=4, max_steps=2, save_steps=1, save_strategy="steps",
        global_batch_size=8, report_to="none",
    )  # fmt: skip
    found = {
        "number": prepared(folder), "written": list(written),
        "grpo": {name: grpo(base, folder / name, case) for name, case in CASES.items()},
    }  # fmt: skip
    torch.save(found, folder / f"process_{process_index()}.pt")
    assert PartialState().num_processes == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
