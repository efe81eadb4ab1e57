"""The main job on real input: a pretrained base learns to answer GSM8K's questions, by a recipe."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit
from tests.launch import two_processes

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
stage: sft
model_name_or_path: {base}
dataset_name: {data}
dataset_train_split: train[:200]
test_split_size: 24
max_length: 384
eval_strategy: steps
eval_steps: 100
eval_on_start: true
max_steps: 16
global_batch_size: 8
learning_rate: 5.0e-3
logging_steps: 4
save_strategy: "no"
output_dir: {out}
seed: 1
"""


@pytest.fixture
def short(gsm8k: Path, tmp_path: Path) -> Path:
    """The problems of which none has to be cut."""
    lines = gsm8k.read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path / "short.jsonl"
    path.write_text("".join(line for line in lines if len(line) < 460), encoding="utf-8")
    return path


def recipe_in(folder: Path, base: Path, data: Path, more: str = "") -> Path:
    path = folder / "gsm8k.yaml"
    path.write_text(RECIPE.format(base=base, data=data, out=folder / "run") + more)
    return path


def command(*words: str | Path, **variables: str) -> str:
    """What a command of ours prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file()
    }


def held_out(run: Path) -> list[float]:
    """The loss of the answers held out, before training and after it."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


@torch.no_grad()
def answer_loss(model, sequences) -> float:
    """Mean loss of the labelled tokens, by plain transformers."""
    total, count = 0.0, 0
    for sequence in sequences:
        labels = torch.tensor([sequence["labels"]])
        logits = model(input_ids=torch.tensor([sequence["input_ids"]])).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="none"
        )
        total, count = total + float(losses.sum()), count + int((labels[0, 1:] != -100).sum())
    return total / count


def test_a_real_base_learns_to_answer(stories, short, tmp_path):
    recipe, run = recipe_in(tmp_path, stories, short), tmp_path / "run"
    before = digests(stories)
    command("toolkit", "run", recipe)
    assert digests(stories) == before
    first, *_, last = held_out(run)
    assert last < first - 1.0, f"held-out response loss: {first:.2f} → {last:.2f}"

    # by plain PEFT, as one without this toolkit would load it
    model = AutoPeftModelForCausalLM.from_pretrained(run).eval()
    words = AutoTokenizer.from_pretrained(run)
    held = toolkit.build(
        "sft", model_name_or_path=str(stories), processing_class=words, seed=1, max_length=384,
        dataset_name=str(short), dataset_train_split="train[:200]", test_split_size=24,
        output_dir=str(tmp_path / "other"),
    ).eval_dataset  # fmt: skip
    assert answer_loss(model, held) == pytest.approx(last, abs=2e-2)
    base = AutoModelForCausalLM.from_pretrained(stories)
    loaded = dict(model.get_base_model().named_parameters())
    for name, weight in base.named_parameters():
        if name != "model.embed_tokens.weight":  # it got rows for the new tokens
            name = name if name in loaded else name.replace(".weight", ".base_layer.weight")
            assert torch.equal(loaded[name], weight), name


def test_inspect_shows_that_only_answers_are_trained(stories, short, tmp_path):
    recipe = recipe_in(tmp_path, stories, short)
    shown = command("toolkit", "inspect", recipe, "--json").splitlines()
    assert len(shown) == 176
    answers = [json.loads(line)["answer"] for line in short.read_text().splitlines()]
    words = AutoTokenizer.from_pretrained(stories)
    for sequence in map(json.loads, shown):
        answer = answers[sequence["row"] - 1]
        (span,) = sequence["spans"]
        trained = [token for token in sequence["labels"] if token != -100]
        assert trained == sequence["input_ids"][span["start"] : span["end"]]
        assert span["text"] == answer + "<|im_end|>"
        assert words.decode(trained[:-1]).split() == answer.split()
        assert trained[-1] == len(words) + 1


def test_in_four_bits(stories, short, tmp_path):
    recipe = recipe_in(tmp_path, stories, short, "load_in_4bit: true\nbnb_4bit_quant_type: nf4\n")
    before = digests(stories)
    command("toolkit", "run", recipe)
    assert digests(stories) == before
    first, *_, last = held_out(tmp_path / "run")
    assert last < first - 1.0, f"held-out response loss: {first:.2f} → {last:.2f}"
    proof = json.loads((tmp_path / "run" / "stage.json").read_text())["verification"]
    assert proof["verified"] == "fresh_load"
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")  # over the whole base
    assert model.peft_config["default"].base_model_name_or_path == str(stories)


def test_on_two_processes_by_the_launcher(stories, short, tmp_path):
    # each process would draw its own dropout
    recipe = recipe_in(tmp_path, stories, short, "lora_dropout: 0.0\n")
    alone = tmp_path / "alone"
    command("toolkit", "run", recipe, "--output_dir", alone)
    printed = two_processes("run", recipe)
    assert printed.count("━━ sft") == 1
    manifest = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert manifest["processes"] == 2
    assert held_out(tmp_path / "run") == pytest.approx(held_out(alone), abs=2e-3)
