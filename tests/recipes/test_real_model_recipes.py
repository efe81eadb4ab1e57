"""Each real-model recipe takes two steps on a tiny model of the same make and rows of the same kind."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from tests.tiny_ppo import quiet
from toolkit.recipe import StageRecipe, load_recipe

from .tiny_models import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
SFT = ("recipes/sft_lora.yaml", "recipes/sft_qlora_24gb.yaml", "recipes/sft_full.yaml")
PREFERENCES = ("recipes/reward_lora.yaml", "recipes/dpo_lora.yaml")
ROLLOUTS = ("recipes/grpo_gsm8k.yaml", "recipes/ppo.yaml", "recipes/r1_zero.yaml")
PIPELINE = "recipes/instructgpt.yaml"
ROLLOUT_STAGES = ("grpo", "ppo")


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
    "trl-lib/ultrafeedback_binarized": [
        {
            "chosen": chat(f"Name {n + 1} fruits.", "apple, " * n + "and a pear."),
            "rejected": chat(f"Name {n + 1} fruits.", "No" + ", no" * (n % 3) + "."),
            "score_chosen": 8.0,
            "score_rejected": 2.5,
        }
        for n in range(16)
    ],
    "trl-lib/ultrafeedback-prompt": [
        {"prompt": chat(f"Name {n + 1} vegetables{', please' * (n % 4)}.")} for n in range(16)
    ],
    "DigitalLearningGmbH/MATH-lighteval": [
        {
            "problem": f"Simplify $\\frac{{{n}}}{{{2 * n}}}$.",
            "level": "Level 3",
            "solution": f"Divide both by ${n}$: the result is $\\boxed{{\\frac{{1}}{{2}}}}$.",
            "type": "Prealgebra",
        }
        for n in range(1, 17)
    ],
}


def write_rows(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    for split, part in (("train", rows[:-4]), ("test", rows[-4:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def varied(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that differs from one completion of a random model to the next."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def two_steps(
    recipe: str, folder: Path, *, base: Path | None = None, **more: Any
) -> tuple[Path, Path, list[StageRecipe]]:
    """Run a recipe for two steps of each stage: the base, the run's folder, and the stages."""
    base, changed, stages = on_stand_ins(recipe, folder, base)
    before = digest(base)
    result = toolkit.run(ROOT / recipe, **changed | more)
    assert digest(base) == before
    return base, Path(result.output_dir), stages


def on_stand_ins(
    recipe: str, folder: Path, base: Path | None = None
) -> tuple[Path, dict[str, Any], list[StageRecipe]]:
    """The base, the keys with which a recipe takes two steps on a tiny model, and its stages.

    What changes is the size of things and where they lie. Rollouts get one more reward, since no
    answer of a random model is right.
    """
    stages = load_recipe(ROOT / recipe).stages
    data = {
        name: write_rows(folder / f"rows{number}", rows)
        for number, (name, rows) in enumerate(ROWS.items())
    }
    asked = {stage["dataset_name"] for stage in stages if stage.stage != "evaluate"}
    texts = [json.dumps(row, ensure_ascii=False) for name in asked for row in ROWS[name]]
    (named,) = {stage["model_name_or_path"] for stage in stages}
    base = base or write_tiny_model(named, folder / "base", texts)
    changed: dict[str, Any] = {
        "model_name_or_path": str(base), "output_dir": str(folder / "run"), "max_steps": 2,
        "global_batch_size": 4, "per_device_train_batch_size": 2, "warmup_steps": 0,
        "logging_steps": 1, "report_to": "none", "eval_steps": 2,
        "optim": "adamw_torch",  # the paged 8-bit one needs a GPU
    }  # fmt: skip
    for stage in stages:
        own: dict[str, Any] = {"per_device_eval_batch_size": 4}
        if stage.stage == "evaluate":
            own["tasks"] = [
                task | {"dataset_name": str(data[task["dataset_name"]]), "dataset_config": None}
                for task in stage["tasks"]
            ]
        else:
            own |= {"dataset_name": str(data[stage["dataset_name"]]), "dataset_config": None}
            if stage.is_written("dataset_test_split"):
                own["dataset_test_split"] = "test"
        if stage.stage in (*ROLLOUT_STAGES, "evaluate"):
            own["max_completion_length"] = 12
        if stage.stage in ROLLOUT_STAGES:
            own["generation_batch_size"] = 8 if stage.is_written("generation_batch_size") else None
            own["num_generations"] = min(4, stage["num_generations"])
            own["reward_funcs"] = [*stage["reward_funcs"], f"{__name__}:{varied.__name__}"]
        changed |= {f"{stage.name}.{key}": value for key, value in own.items()}
    return base, changed, list(stages)


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("recipe", SFT)
def test_two_steps_of_sft(recipe, tmp_path):
    base, run, (stage,) = two_steps(recipe, tmp_path)
    assert_trained(base, run, use_peft=stage["use_peft"])
    model, tokenizer = toolkit.load(run)
    # whatever the base stopped at, the assistant stops at the end of its turn
    if stage["dataset_name"] != "openai/gsm8k":
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.pad_token != tokenizer.eos_token
    with torch.no_grad():
        assert torch.isfinite(
            model(**tokenizer("Name two fruits.", return_tensors="pt")).logits
        ).all()


@pytest.mark.parametrize("recipe", PREFERENCES)
def test_two_steps_of_preferences(recipe, tmp_path):
    base, run, (stage,) = two_steps(recipe, tmp_path)
    assert_trained(base, run)
    measured = logged(run, "eval_loss")
    assert measured
    assert all(math.isfinite(loss) for loss in measured)
    if stage.stage == "reward":
        pairs = (run / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(pairs) == 4
        assert json.loads(pairs[0])["chosen"].startswith("apple, ")


@quiet
@pytest.mark.parametrize("recipe", ROLLOUTS)
def test_two_steps_of_rollouts(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # a recipe's own paths are read from here
    base, run, (stage, *exam) = two_steps(recipe, tmp_path)
    folder = run / stage.name if exam else run
    assert_trained(base, folder)
    assert_rewarded(folder, stage)
    if stage["eval_strategy"] != "no":
        assert logged(folder, "eval_rewards/answer/mean")
    assert (folder / "value" / "adapter_model.safetensors").is_file() == (stage.stage == "ppo")
    if exam:
        rows = json.loads((run / "report.json").read_text(encoding="utf-8"))["exam"]
        assert [(row["stage"], row["n"]) for row in rows] == [("base", 4), (stage.name, 4)]


def test_a_base_is_asked_as_r1_zero_was(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, run, (stage,) = two_steps("recipes/r1_zero.yaml", tmp_path, max_steps=1, eval_strategy="no")
    _, words = toolkit.load(run)
    asked = chat("What is 1 plus 1?")
    text: Any = words.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text.startswith("A conversation between User and Assistant. The user asks a question")
    assert text.endswith("</answer>.\nUser: What is 1 plus 1?\nAssistant:")
    said = " <think> One more. </think> <answer> 2 </answer>"
    whole = words.apply_chat_template([*asked, *chat("", said.strip())[1:]], tokenize=False)
    assert whole == f"{text}{said}<|endoftext|>"  # the base's own stop token ends the turn
    assert words.eos_token == "<|endoftext|>"
    given = {"prompts": [asked], "completions": [said], "completion_ids": [[1]], **gold(stage)}
    rewards = [toolkit.rewards.load_reward(entry) for entry in stage["reward_funcs"]]
    assert [reward(**given) for reward in rewards] == [[1.0], [1.0]]
    given["completions"] = [f"{said} What is 2 plus 2?"]
    assert [reward(**given) for reward in rewards] == [[1.0], [0.0]]
    given["completions"] = [" 2"]
    assert [reward(**given) for reward in rewards] == [[1.0], [0.0]]


def gold(stage: StageRecipe) -> dict[str, list[str]]:
    """A gold answer of 2 in the column that the recipe's reward reads."""
    (column,) = [entry["column"] for entry in stage["reward_funcs"] if entry["name"] == "answer"]
    assert column in ROWS[stage["dataset_name"]][0]
    return {column: ["So it is $\\boxed{2}$."]}


@quiet
def test_two_steps_of_each_stage_of_instructgpt(tmp_path):
    base, run, (sft, reward, ppo, _) = two_steps(PIPELINE, tmp_path)
    for stage in (sft, reward, ppo):
        assert_trained(base, run / stage.name)
    assert_rewarded(run / "ppo", ppo)
    starts = {
        name: json.loads((run / name / "stage.json").read_text(encoding="utf-8"))["recipe"]
        for name in ("reward", "ppo")
    }
    assert [starts[name]["start_from"] for name in starts] == ["sft", "sft"]
    # policy and critic start where the stages before them ended, and have gone on from there
    for one, other in (("sft", "ppo"), ("reward", "ppo/value")):
        before, after = (
            load_file(run / name / "adapter_model.safetensors") for name in (one, other)
        )
        assert before.keys() == after.keys()
        for name, weight in after.items():
            if "lora_B" in name:
                assert not torch.equal(weight, before[name]), name
                assert torch.allclose(weight.float(), before[name].float(), atol=1e-2), name
    rows = json.loads((run / "report.json").read_text(encoding="utf-8"))["exam"]
    assert [(row["stage"], row["n"]) for row in rows] == [("sft", 4), ("ppo", 4)]


@quiet
def test_a_reward_model_of_one_recipe_serves_another(tmp_path):
    for name in ("reward", "ppo"):
        (tmp_path / name).mkdir()
    base, judge, _ = two_steps("recipes/reward_lora.yaml", tmp_path / "reward")
    rewarded = {
        "ppo.reward_funcs": [f"adapter:{judge}"], "ppo.value_start_from": f"adapter:{judge}"
    }  # fmt: skip
    _, run, _ = two_steps("recipes/ppo.yaml", tmp_path / "ppo", base=base, **rewarded)
    assert_trained(base, run / "ppo")
    scores = logged(run / "ppo", f"rewards/adapter:{judge}/mean")
    assert scores
    assert all(math.isfinite(score) for score in scores)


def logged(run: Path, key: str) -> list[float]:
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[key] for line in lines if key in line]


def assert_rewarded(run: Path, stage: StageRecipe) -> None:
    """Every reward of the recipe was asked, and could score every completion."""
    for entry in stage["reward_funcs"]:
        name = entry if isinstance(entry, str) else entry["name"]
        values = logged(run, f"rewards/{name}/mean")
        assert values
        assert all(math.isfinite(value) for value in values), name
        assert not any(logged(run, f"rewards/{name}/unscored")), name


def assert_trained(base: Path, run: Path, *, use_peft: bool = True) -> None:
    """The run's own weights moved; a loss was logged; an adapter holds nothing of the base."""
    losses = logged(run, "loss")
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    if use_peft:
        adapter = load_file(run / "adapter_model.safetensors")
        # lora_B starts at zero
        assert all(weight.any() for name, weight in adapter.items() if "lora_B" in name)
        own = ("lora_", "token", "model.score.")
        assert all(any(part in name for part in own) for name in adapter), sorted(adapter)
    else:
        before, after = load_file(base / "model.safetensors"), load_file(run / "model.safetensors")
        assert before.keys() == after.keys()
        moved = [
            name for name in before if not torch.equal(before[name].float(), after[name].float())
        ]
        assert len(moved) == len(before), sorted(set(before) - set(moved))
