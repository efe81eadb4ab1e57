"""What Python calls: one stage by keywords, or its trainer before it trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.artifacts import allowed
from toolkit.artifacts.manifest import StageResult
from toolkit.errors import RecipeError
from toolkit.pipeline import run_recipe, stage_module
from toolkit.recipe import Recipe, recipe_from_keywords
from toolkit.recipe.keys import TRAINING
from toolkit.stages import pushing, terminal
from toolkit.stages.trackers import keep_private

OBJECTS = ("model", "processing_class", "train_dataset", "eval_dataset", "callbacks")
"""What Python may give to a stage in place of a name, and below what it alone can give."""
OF_TRAINING = ("trainer_class",)
OF_ROLLOUTS = ("reward_funcs", "gold_funcs", "tools", "environment_factory", "rollout_func")


def pretrain(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Pretraining of a small base; keywords are recipe keys, or `train_dataset=` and so on."""
    return run_stage("pretrain", overwrite=overwrite, **keys)


def sft(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Supervised fine-tuning; keywords are recipe keys, or `model=`, `train_dataset=` and so on."""
    return run_stage("sft", overwrite=overwrite, **keys)


def reward(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """A reward model from ranked answers; keywords are recipe keys, or `train_dataset=` and so on."""
    return run_stage("reward", overwrite=overwrite, **keys)


def dpo(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Direct preference optimization; keywords are recipe keys, or `train_dataset=` and so on."""
    return run_stage("dpo", overwrite=overwrite, **keys)


def grpo(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """GRPO; keywords are recipe keys, `train_dataset=`, or functions in `reward_funcs=[…]`."""
    return run_stage("grpo", overwrite=overwrite, **keys)


def ppo(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """PPO with a value adapter; keywords as of `grpo`."""
    return run_stage("ppo", overwrite=overwrite, **keys)


def rejection(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Sample answers, learn the right ones, and again; keywords are recipe keys."""
    return run_stage("rejection", overwrite=overwrite, **keys)


def rank(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Sample answers and rank them by rewards: preferences on policy; keywords are recipe keys."""
    return run_stage("rank", overwrite=overwrite, **keys)


def evaluate(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Examine a base and what was trained from it; keywords are recipe keys, or `model=`."""
    return run_stage("evaluate", overwrite=overwrite, **keys)


def run_stage(
    stage: str,
    *,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    fresh_optimizer: bool = False,
    **keys: Any,
) -> StageResult:
    """Run one stage from keywords; the others as of `run`."""
    objects, recipe = given_to(stage, keys)
    recipe = allowed.asked_for(recipe, allow_change, fresh_optimizer=fresh_optimizer)
    result = run_recipe(recipe, overwrite=overwrite, objects=objects)
    return result.stages[recipe.stages[0].name]


def given_to(stage: str, keys: Mapping[str, Any]) -> tuple[dict[str, Any], Recipe]:
    """What Python gave to a stage: objects by name, and a recipe of the rest.

    Raises:
        RecipeError: if `callbacks` is no list.
    """
    keys = dict(keys)
    if isinstance(keys.get("model"), str | Path):  # TRL's word for model_name_or_path
        keys["model_name_or_path"] = str(keys.pop("model"))
    names = OBJECTS + (OF_TRAINING if stage in TRAINING else ())
    names += OF_ROLLOUTS if stage in ("grpo", "ppo") else ()
    names += ("reward_funcs",) if stage in ("rank", "evaluate", "rejection") else ()
    objects = {
        key: keys.pop(key)
        for key in names
        if keys.get(key) is not None and not is_written_out(key, keys[key])
    }
    for key in ("reward_funcs", "gold_funcs"):
        if callable(objects.get(key)):
            objects[key] = [objects[key]]
    if not isinstance(objects.get("callbacks", []), list | tuple):
        found = type(objects["callbacks"]).__name__
        raise RecipeError(f"callbacks: expected a list, found {found}; write callbacks=[…]")
    return objects, recipe_from_keywords(stage, given=objects, **keys)


def is_written_out(key: str, value: Any) -> bool:
    """Whether Python gave in words what a recipe could say too, for the keys that allow both."""
    if key in ("reward_funcs", "gold_funcs") and isinstance(value, list | tuple):
        return all(isinstance(entry, str | Mapping) for entry in value)
    return key in ("trainer_class", "reward_funcs", "gold_funcs") and isinstance(value, str)


def build(stage: str, **keys: Any) -> Any:
    """The configured TRL trainer of a training stage, before `.train()`.

    Args:
        stage: for example "sft".
        **keys: recipe keys, or objects: `model`, `processing_class`, `train_dataset`,
            `eval_dataset`, `callbacks`.

    Raises:
        RecipeError: if the stage trains nothing.
    """
    objects, recipe = given_to(stage, keys)
    module = stage_module(stage)
    if not hasattr(module, "build"):
        raise RecipeError(f"stage {stage!r} has no trainer of its own, so there is none to build")
    (only,) = recipe.stages
    trainer = module.build(only, output_dir=recipe.output_dir, earlier={}, **objects)
    if pushing.pushes(only):
        terminal.note(
            "push_to_hub: a trainer from toolkit.build pushes nothing; run the stage, or push"
        )
    keep_private(trainer, only)
    return trainer
