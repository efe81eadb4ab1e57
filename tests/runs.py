"""A finished run as it lies on disk, written by hand: no model, no training."""

import json
from pathlib import Path
from typing import Any

import yaml

BASE = "org/base"
ENVIRONMENT = {"python": "3.11.7", "platform": "Linux x86_64", "libraries": {"torch": "2.13.0"}}
RIGHT = {"base": [0], "sft": [0, 1, 2, 3], "grpo": [1, 2, 3, 4, 5, 6, 7]}
"""Which of the ten questions each model answers right."""


def recipe(seed: int = 0, **sft: Any) -> dict[str, Any]:
    """The recipe of the run."""
    shared = {"model_name_or_path": BASE, "seed": seed}
    return {
        "output_dir": f"runs/{seed}",
        "stages": [
            {"stage": "sft", "name": "sft", "dataset_name": "chats.jsonl", **shared, **sft},
            {"stage": "reward", "name": "reward", "start_from": "sft", "dataset_name": "p", **shared},
            {
                "stage": "grpo", "name": "grpo", "start_from": "sft", "dataset_name": "q.jsonl",
                "reward_funcs": ["adapter:reward", "answer"], **shared,
            },
            {"stage": "evaluate", "name": "exam", "tasks": [], **shared},
        ],
    }  # fmt: skip


def write_run(folder: Path, seed: int = 0, right: dict[str, list[int]] = RIGHT, **sft: Any) -> Path:
    """Write the run; returns its folder."""
    written = recipe(seed, **sft)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    for keys in written["stages"]:
        name, kind = keys["name"], keys["stage"]
        (folder / name).mkdir()
        manifest = {
            "stage": kind, "name": name, "recipe": keys, "seed": seed, "inputs": {},
            "finished_at": "2026-11-21T16:35:59Z", "seconds": 61.0, "device": "cpu",
            "peak_memory_bytes": 3 * 2**30, "processes": 1, "environment": ENVIRONMENT,
            "metrics": {"steps": 40, "train_loss": 0.5 + seed / 10},
        }  # fmt: skip
        if kind != "evaluate":
            data = {"dataset_name": keys["dataset_name"], "rows": 1200, "sha256": "1"}
            manifest |= {"data": [data]}
            lines(folder / name / "log.jsonl", log(kind))
        dump(folder / name / "stage.json", manifest)
    pairs = [{"chosen_score": at / 10, "rejected_score": -at / 10} for at in range(20)]
    lines(folder / "reward" / "pairs.jsonl", pairs)
    write_exam(folder / "exam", right)
    return folder


def write_exam(folder: Path, right: dict[str, list[int]]) -> None:
    """Greedy answers to ten questions, and the report on them."""
    rows, compared = [], []
    for model, known in right.items():
        lines(
            folder / f"completions-{model}.jsonl", [answer(model, q, q in known) for q in range(10)]
        )
        share = len(known) / 10
        rows.append(
            {
                "stage": model, "task": "sums", "accuracy": share, "low": max(0.0, share - 0.1),
                "high": min(1.0, share + 0.1), "greedy": share, "greedy_low": max(0.0, share - 0.1),
                "greedy_high": min(1.0, share + 0.1), "vote": None, "best_of": {}, "n": 10,
                "samples": 0, "lenient": share, "stopped": 1.0, "tokens": 7.0,
            }
        )  # fmt: skip
    scores = [
        {"stage": model, "task": "sums", "score": at / 5}
        for model in right
        for at in range(len(model))
    ]
    lines(folder / "scores-answer.jsonl", scores)
    models = list(right)
    for a, b in ((models[0], models[-1]), (models[-2], models[-1])):
        only = [len(set(right[x]) - set(right[y])) for x, y in ((a, b), (b, a))]
        pair = {"task": "sums", "a": a, "b": b, "a_only": only[0], "b_only": only[1]}
        compared.append(pair | {"n": 10, "p": 0.03})
    dump(folder / "report.json", {"exam": rows, "comparisons": compared, "gains": []})


def answer(model: str, question: int, is_right: bool) -> dict[str, Any]:
    """A kept completion."""
    return {
        "stage": model, "task": "sums", "question": question, "sample": None, "stopped": True,
        "text": f"{model} says {question}", "right": is_right, "tokens": 4,
        "asked": f"What is {question} + 0?", "expected": str(question),
    }  # fmt: skip


def log(kind: str) -> list[dict[str, Any]]:
    """Forty steps of a log, with a gap."""
    found: list[dict[str, Any]] = []
    for step in range(4, 44, 4):
        entry = {"step": step, "loss": 3 / step, "learning_rate": 1e-4, "grad_norm": 1.0}
        if kind == "grpo":
            entry |= {"reward": step / 40, "reward_std": 0.2, "kl": step / 1000}
            entry |= {"completions/mean_length": 20.0 + step, "rewards/answer/mean": step / 50}
            entry |= {"rewards/adapter:reward/mean": None if step == 20 else step / 30}
        found.append(entry)
    return [*found, {"step": 40, "train_runtime": 60.0, "train_loss": 0.5}]


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def dump(path: Path, value: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def change(path: Path, **keys: Any) -> None:
    """Set keys of a JSON object on disk."""
    dump(path, json.loads(path.read_text(encoding="utf-8")) | keys)
