"""A tiny policy, and a PPOTrainer around it whose completions may be fixed."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from toolkit.models import adapters, chatml
from toolkit.models.load import load_tokenizer
from toolkit.recipe import recipe_from_keywords
from toolkit.stages.ppo_config import PPOConfig
from toolkit.stages.ppo_trainer import PPOTrainer

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of rollout_func and environment_factory

# TRL 1.16 (models/utils.py) calls what transformers 5.23 has renamed
quiet = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning"
)


def policy(base: Path, *, spread: float = 0.05, **keys: Any) -> tuple[Any, Any]:
    """An adapter that differs from its base, with ChatML's trained rows, and its tokenizer.

    Args:
        base: a folder of `tests.tiny`.
        spread: of the noise that makes the adapter one that has been trained before.
        **keys: of a recipe.
    """
    words = load_tokenizer(base, padding_side="left")
    change = chatml.prepare_tokenizer(words, conversational=True)
    model = AutoModelForCausalLM.from_pretrained(base)
    chatml.fit_embeddings(model, words, change)
    written = {"model_name_or_path": str(base), "dataset_name": "x.jsonl", "lora_r": 4} | keys
    torch.manual_seed(1)
    model = adapters.attach(model, recipe_from_keywords("sft", **written).stages[0], change)
    stir(model, spread)
    return model, words


@torch.no_grad()
def stir(model: Any, spread: float, only: str = "") -> None:
    """Add noise to what is trained and has `only` in its name."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and only in name:
            weight += spread * torch.randn_like(weight)


def prompts(number: int = 8) -> Dataset:
    """Chats of uneven length."""
    texts = [f"{'ab' * (index % 4 + 1)}{index}" for index in range(number)]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])


def fixed(words: Any, lengths: tuple[int, ...] = (1, 3, 5, 9)) -> Any:
    """A rollout_func: completions that depend on the prompt and on how often it was asked."""
    asked: dict[str, int] = {}

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": None}
        for prompt in prompts:
            content = prompt[-1]["content"]
            asked[content] = asked.get(content, -1) + 1
            draw = random.Random(f"{content}|{asked[content]}")
            completion = [draw.randrange(1, 257) for _ in range(draw.choice(lengths))]
            if draw.random() < 0.5:
                completion[-1] = words.eos_token_id
            ids = words.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            found["prompt_ids"].append(list(ids))
            found["completion_ids"].append(completion)
        return found

    return rollout


def odd(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward: the share of odd tokens, and a little for length."""
    return [sum(token % 2 for token in ids) / len(ids) + 0.1 * len(ids) for ids in completion_ids]


def trainer(model: Any, words: Any, directory: Path, **given: Any) -> Any:
    """A PPOTrainer on eight prompts, of which a step sees all.

    Args:
        model: with the policy.
        words: its tokenizer.
        directory: where checkpoints go.
        **given: `kind` in place of PPOTrainer; arguments of the trainer; else of its configuration.
    """
    kind = given.pop("kind", PPOTrainer)
    of_trainer = {
        name: given.pop(name)
        for name in ("tools", "environment_factory", "eval_dataset", "value_start_from")
        if name in given
    }
    of_trainer |= {
        "reward_funcs": given.pop("reward_funcs", odd),
        "train_dataset": given.pop("train_dataset", None) or prompts(),
        "rollout_func": given.pop("rollout_func", None),
    }
    settings = {
        "output_dir": str(directory),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 2,
        "num_iterations": 2,
        "max_completion_length": 12,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 3,
    }
    return kind(model, args=PPOConfig(**(settings | given)), processing_class=words, **of_trainer)


def held(model: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def role(name: str) -> str:
    """Whose parameter this is: default, value, ref, another adapter's, or the base's."""
    if name.startswith("scalar_heads."):
        return name.split(".")[1]
    if "lora_" in name or "trainable_tokens" in name or "modules_to_save" in name:
        return name.removesuffix(".weight").rpartition(".")[2]
    return "base"


def moved(before: dict[str, torch.Tensor], model: Any) -> dict[str, str]:
    """By role, how many of its parameters moved: all, some or none."""
    found: dict[str, list[bool]] = {}
    for name, weight in model.named_parameters():
        found.setdefault(role(name), []).append(not torch.equal(weight, before[name]))
    return {key: "all" if all(m) else "some" if any(m) else "none" for key, m in found.items()}


def logged(trainer: Any, key: str) -> list[Any]:
    """What was logged under a key, in order."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]
