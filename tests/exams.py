"""A tiny exam and the tiny models that sit it; how a test runs, interrupts and watches one."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests import tiny
from toolkit.from_python import run_stage
from toolkit.inference.sampling import TransformersEngine
from toolkit.stages.completions import Completions, file_name

ROWS = [{"question": f"What is {index}?", "answer": f"{index}"} for index in range(7)]


def train_sft(base: Path, folder: Path) -> Path:
    """A finished SFT stage over a base."""
    toolkit.sft(
        model_name_or_path=str(base), train_dataset=tiny.ROWS, output_dir=str(folder),
        lora_r=4, max_steps=2, per_device_train_batch_size=4,
    )  # fmt: skip
    return folder


def train_reward(base: Path, adapter: Path, folder: Path, **keys: Any) -> Path:
    """A finished reward stage that goes on from an SFT stage."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {index}?"}],
            "answers": [f"{index}", "No."],
            "ranks": [1, 2],
        }
        for index in range(8)
    ]
    run_stage(
        "reward", model_name_or_path=str(base), start_from=str(adapter), train_dataset=rows,
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, learning_rate=0.01,
        report_to="none", **keys,
    )  # fmt: skip
    return folder


def settings(base: Any, directory: Path, **keys: Any) -> dict[str, Any]:
    """The keys of a small exam."""
    return {
        "model_name_or_path": str(base), "output_dir": str(directory), "max_completion_length": 8,
        "tasks": [{"name": "numbers", "rows": ROWS}], "num_generations": 2,
        "per_device_eval_batch_size": 4,
    } | keys  # fmt: skip


def examine(base: Any, directory: Path, **keys: Any) -> Any:
    """Hold a small exam."""
    return toolkit.evaluate(**settings(base, directory, **keys))


def lines_of(directory: Path, name: str = "base", kind: str = "completions") -> list[dict]:
    """What was kept of a model, or of a reward."""
    text = (directory / file_name(name, kind)).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class Interrupted(BaseException):
    """Ends a stage as Ctrl-C does."""


def interrupted(monkeypatch: Any, run: Any, *, after: int) -> None:
    """Call what runs a stage, and end it after some completions or scores."""
    append = Completions.append
    done = []

    def limited(self: Completions, line: Any) -> None:
        if len(done) == after:
            raise Interrupted
        done.append(line)
        append(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(Completions, "append", limited)
        with pytest.raises(Interrupted):
            run()


def watched(monkeypatch: Any) -> list[tuple[Any, Any, Any]]:
    """A list that gets every model that is asked, by a weak reference, its dtype and its prompts."""
    seen: list[tuple[Any, Any, Any]] = []
    generate = TransformersEngine.generate

    def spy(self: TransformersEngine, prompts: Any, sampling: Any) -> Any:
        seen.append((weakref.ref(self.model), self.model.dtype, prompts))
        return generate(self, prompts, sampling)

    monkeypatch.setattr(TransformersEngine, "generate", spy)
    return seen
