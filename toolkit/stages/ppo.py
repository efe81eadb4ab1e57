"""Proximal policy optimization, with every role an adapter over one frozen base."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from toolkit.artifacts.manifest import StageResult
from toolkit.errors import RecipeError
from toolkit.models.same_words import check_same_words
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import ADAPTER, OURS
from toolkit.stages.arguments import build_arguments
from toolkit.stages.grpo import Entry, Prompts, dealt_with, policy, rewarded, run_rollouts
from toolkit.stages.ppo_config import PPOConfig
from toolkit.stages.ppo_trainer import PPOTrainer
from toolkit.stages.prepared import Examples
from toolkit.stages.trainer_class import trainer_class_of
from toolkit.stages.vllm_rollouts import check_vllm


def run(
    recipe: StageRecipe, *, output_dir: Path, earlier: Mapping[str, Path], **objects: Any
) -> StageResult:
    """Train, save and prove one stage; the value adapter is saved in its folder `value`.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `start_from` and `reward_funcs`.
        **objects: what Python gave in place of a name; see `assemble`.
    """
    return run_rollouts(assemble, recipe, output_dir=output_dir, earlier=earlier, **objects)


def build(recipe: StageRecipe, **given: Any) -> PPOTrainer:
    """The configured trainer, before `.train()`; arguments as in `assemble`."""
    return assemble(recipe, **given)[0]


def assemble(
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
    reward_funcs: Sequence[Entry] | None = None,
    gold_funcs: Sequence[Entry] | None = None,
    trainer_class: type[PPOTrainer] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **more: Any,
) -> tuple[PPOTrainer, Prompts]:
    """The configured trainer, and what it is asked; arguments and errors as of `grpo.assemble`."""
    if not recipe["use_peft"]:
        raise RecipeError(
            f"{recipe.where['use_peft']}: PPO here holds policy, critic and reference as adapters "
            "over one base; leave use_peft: false out, or train whole models with stage grpo"
        )
    check_vllm(recipe)
    args = ppo_config(recipe, output_dir)
    start = value_start(recipe, earlier)
    trained, data = policy(recipe, earlier, model, processing_class, train_dataset, eval_dataset)
    if start is not None:
        check_same_words(start, data.tokenizer)
    kind = trainer_class_of(recipe, PPOTrainer, trainer_class)
    trainer: Any = rewarded(
        functools.partial(kind, value_start_from=start),
        recipe,
        earlier,
        trained,
        data,
        reward_funcs,
        gold_funcs,
        args=args,
        callbacks=callbacks,
        **more,
    )
    return trainer, data


def ppo_config(recipe: StageRecipe, output_dir: Path) -> PPOConfig:
    """The configuration: TRL's keys, and those that are ours."""
    names = {field.name for field in fields(PPOConfig)}
    ours = {
        key: recipe[key]
        for key in recipe.arguments(OURS)
        if key in names and key not in ("trust_remote_code", "chat_template_path")
    }
    changed = ours | dealt_with(recipe)
    return build_arguments(recipe, PPOConfig, output_dir, owner="GRPOConfig", **changed)


def value_start(recipe: StageRecipe, earlier: Mapping[str, Path]) -> str | None:
    """The folder or Hub id of the reward adapter that the critic starts from."""
    named = recipe["value_start_from"]
    if named is None:
        return None
    if not named.startswith(ADAPTER):
        raise RecipeError(
            f"{recipe.where['value_start_from']}: value_start_from names a reward stage's adapter, "
            f"as {ADAPTER}NAME; found {named!r}"
        )
    name = named.removeprefix(ADAPTER)
    return str(earlier.get(name, name))
