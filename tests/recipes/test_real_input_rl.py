"""GRPO and PPO on a real base: stories are rewarded that mention an animal and end in time."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit
from tests.tiny_ppo import quiet
from toolkit.errors import RecipeError
from toolkit.models.load import load_tokenizer

OPENINGS = (
    "{name} had a {animal}. The {animal} ran away, and {name} was sad. Then his sister found it, "
    "and they were happy again. From that day on, {name} and his sister",
    "{name} gave his toy to a {animal}. The {animal} was happy and said thank you. They became "
    "good friends. From that day on, they",
)
NAMES = ("Tom", "Tim", "Max", "Ben", "Sam", "Jack", "Leo", "Bob")
ROWS = [
    {"prompt": opening.format(name=name, animal=animal), "animal": animal}
    for opening in OPENINGS
    for name in NAMES
    for animal in ("cat", "dog", "bird")
]
LONGEST = 40  # tokens; in these the base ends one story in five
END = "<s>"  # what stands between two stories that the base has read; its tokenizer says </s>


def mentions(completions: list[str], animal: list[str], **columns: Any) -> list[float]:
    """1 for a completion that mentions its row's animal."""
    return [float(name in text) for name, text in zip(animal, completions, strict=True)]


def ends(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """1 for a completion that has ended before it was cut."""
    return [float(ids[-1] == 1) for ids in completion_ids]


def trained(stage: str, base: Path, out: Path, **keys: Any) -> list[dict[str, Any]]:
    """Run a stage with both rewards; what was logged of each rollout, in order."""
    words = load_tokenizer(base)
    words.eos_token = END
    run = {"grpo": toolkit.grpo, "ppo": toolkit.ppo}[stage]
    given = {
        "train_dataset": ROWS,
        "processing_class": words,
        "reward_funcs": [mentions, ends],
        "max_completion_length": LONGEST,
        "global_batch_size": 48,
        "per_device_train_batch_size": 48,
        "lora_r": 8,
        "lora_alpha": 16,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    run(model_name_or_path=str(base), output_dir=str(out), **given | keys)
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "reward" in line]


def thirds(rollouts: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """The mean over the first third of the rollouts, and over the last."""
    values, third = [line[key] for line in rollouts], len(rollouts) // 3
    return sum(values[:third]) / third, sum(values[-third:]) / third


def assert_climbs(rollouts: list[dict[str, Any]]) -> None:
    """More in the last third of the rollouts than in the first, and more of both rewards.

    Seen with seeds 0, 1, 2: 0.6 to 1.0 more, of at most 2, and 0.19 or more of each reward. Without
    learning: 0.05 less, and at most 0.06 more of one.
    """
    first, last = thirds(rollouts, "reward")
    assert last > first + 0.4, [line["reward"] for line in rollouts]
    for name in ("mentions", "ends"):
        first, last = thirds(rollouts, f"rewards/{name}/mean")
        assert last > first + 0.1, (name, [line[f"rewards/{name}/mean"] for line in rollouts])


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


def assert_adapter_alone_moved(base: Path, out: Path) -> PeftModel:
    """Every matrix of the adapter has moved, and under plain PEFT it lies over the base as it is."""
    adapter = load_file(out / "adapter_model.safetensors")
    matrices = {name: weight for name, weight in adapter.items() if "lora_B" in name}
    assert len(matrices) == 5 * 7
    assert all(weight.any() for weight in matrices.values())  # they start at zero
    model = AutoPeftModelForCausalLM.from_pretrained(out).eval()
    loaded = dict(model.get_base_model().named_parameters())
    for name, weight in AutoModelForCausalLM.from_pretrained(base).named_parameters():
        name = name if name in loaded else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(loaded[name], weight), name
    return model


def earned(model: PeftModel, out: Path) -> float:
    """What plain transformers' own samples of the adapter earn, of at most 2."""
    words = AutoTokenizer.from_pretrained(out, padding_side="left")
    asked = words([row["prompt"] for row in ROWS], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    ids = model.generate(**asked, do_sample=True, top_k=0, max_new_tokens=LONGEST)
    new = ids[:, asked["input_ids"].shape[1] :]
    texts = words.batch_decode(new, skip_special_tokens=True)
    stopped = (new == words.eos_token_id).any(dim=1).tolist()
    right = mentions(texts, [row["animal"] for row in ROWS])
    return sum(a + b for a, b in zip(right, stopped, strict=True)) / len(ROWS)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_climbs(stories, tmp_path, seed):
    before, out = digests(stories), tmp_path / "grpo"
    rollouts = trained(
        "grpo", stories, out, seed=seed, learning_rate=5e-3, max_steps=12, num_generations=8
    )
    assert digests(stories) == before
    assert_climbs(rollouts)
    model = assert_adapter_alone_moved(stories, out)
    assert earned(model, out) > 1.5


@quiet
@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_climbs(stories, tmp_path, seed):
    before, out = digests(stories), tmp_path / "ppo"
    rollouts = trained(
        "ppo", stories, out, seed=seed, learning_rate=3e-3, value_learning_rate=1e-2, max_steps=24,
        beta=0.01,
    )  # fmt: skip
    assert digests(stories) == before
    assert_climbs(rollouts)
    model = assert_adapter_alone_moved(stories, out)
    assert earned(model, out) > 1.5
    critic = load_file(out / "value" / "adapter_model.safetensors")
    assert critic["base_model.model.score.weight"].any()  # it starts at zero


@pytest.mark.parametrize(("stage", "each"), [("grpo", 8), ("ppo", 1)])
def test_fewer_prompts_than_a_rollout_takes_are_refused(stories, tmp_path, stage, each):
    rows = ROWS[: 48 // each - 1]
    with pytest.raises(RecipeError, match=rf"takes {48 // each} prompts, found {len(rows)}; "):
        trained(stage, stories, tmp_path / "run", train_dataset=rows, num_generations=each)
    # as many as the message says
    trained(
        stage, stories, tmp_path / "run", train_dataset=rows, num_generations=each, max_steps=1,
        global_batch_size=len(rows) * each, max_completion_length=4,
        reward_funcs=[lambda completion_ids, **_: [sum(ids) % 7 / 7 for ids in completion_ids]],
    )  # fmt: skip
