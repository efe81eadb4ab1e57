"""Each real-model recipe takes two steps on a tiny model of the same make and rows of the same kind."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from toolkit.recipe import load_recipe

from .tiny_models import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("recipes/sft_lora.yaml", "recipes/sft_qlora_24gb.yaml", "recipes/sft_full.yaml")


def chat(*turns: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


# Rows with the columns that each data set has on the Hub.
ROWS = {
    "HuggingFaceTB/smol-smoltalk": [
        {
            "messages": chat(f"Name {n} fruits.", "apple, " * n + "that is all."),
            "source": "everyday",
        }
        for n in range(1, 9)
    ]
    + [
        {
            "messages": [
                {"role": "system", "content": "You are brief."},
                *chat(f"What is {n} plus {n}?", f"{2 * n}.", "And one more?", f"{2 * n + 1}."),
            ],
            "source": "system",
        }
        for n in range(8)
    ],
    "trl-lib/Capybara": [
        {
            "source": "Know-Logic",
            "messages": chat(
                f"Is {n} even?", f"{n % 2 == 0}.", "Why?", f"{n} over two is {n / 2}."
            ),
            "num_turns": 2,
        }
        for n in range(16)
    ],
    "openai/gsm8k": [
        {
            "question": f"Ann has {n} pens and buys {n + 1} more. How many has she now?",
            "answer": f"She has {n} + {n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1}.\n#### {2 * n + 1}",
        }
        for n in range(16)
    ],
}


def write_rows(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    for split, part in (("train", rows[:-4]), ("test", rows[-4:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps_of(recipe, tmp_path):
    (stage,) = load_recipe(ROOT / recipe).stages
    rows = ROWS[stage["dataset_name"]]
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    base = write_tiny_model(stage["model_name_or_path"], tmp_path / "base", texts)

    result = toolkit.run(
        ROOT / recipe,
        model_name_or_path=str(base),
        dataset_name=str(write_rows(tmp_path / "rows", rows)),
        dataset_config=None,
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        global_batch_size=4,
        per_device_train_batch_size=2,
        warmup_steps=0,
        logging_steps=1,
        optim="adamw_torch",  # the paged 8-bit one needs a GPU
        report_to="none",
    )

    assert_trained(base, Path(result.output_dir), use_peft=stage["use_peft"])
    model, tokenizer = toolkit.load(result.output_dir)
    # whatever the base stopped at, the assistant stops at the end of its turn
    if stage["dataset_name"] != "openai/gsm8k":
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.pad_token != tokenizer.eos_token
    with torch.no_grad():
        assert torch.isfinite(
            model(**tokenizer("Name two fruits.", return_tensors="pt")).logits
        ).all()


def assert_trained(base: Path, run: Path, *, use_peft: bool) -> None:
    """The run's own weights moved; a loss was logged; an adapter holds nothing of the base."""
    losses = [
        json.loads(line)["loss"]
        for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
        if "loss" in json.loads(line)
    ]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    if use_peft:
        adapter = load_file(run / "adapter_model.safetensors")
        # lora_B starts at zero
        assert all(weight.any() for name, weight in adapter.items() if "lora_B" in name)
        assert all("lora_" in name or "token" in name for name in adapter), sorted(adapter)
    else:
        before, after = load_file(base / "model.safetensors"), load_file(run / "model.safetensors")
        assert before.keys() == after.keys()
        moved = [
            name for name in before if not torch.equal(before[name].float(), after[name].float())
        ]
        assert len(moved) == len(before), sorted(set(before) - set(moved))
