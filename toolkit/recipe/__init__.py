"""Recipes: read, checked against the installed TRL, and resolved."""

from collections.abc import Iterator
from dataclasses import replace

from toolkit.recipe.defaults import defaults_of
from toolkit.recipe.keys import CONFIGS, STAGES, Key, keys_of
from toolkit.recipe.resolve import load_recipe, recipe_from_flags, recipe_from_keywords
from toolkit.recipe.schema import Recipe, StageRecipe

__all__ = [
    "STAGES",
    "Key",
    "Recipe",
    "StageRecipe",
    "describe",
    "keys_of",
    "load_recipe",
    "recipe_from_flags",
    "recipe_from_keywords",
]


def describe(stage: str) -> Iterator[Key]:
    """A stage's keys for its help: ours, the stage's, the data's, the model's; our defaults."""
    ours = defaults_of(stage, {})
    order = ("toolkit", CONFIGS[stage], "ScriptArguments", "DatasetMixtureConfig", "ModelConfig")
    for owner in filter(None, order):
        for key in keys_of(stage).values():
            if key.owner == owner and key.name not in ("stage", "name", "hub_token"):
                yield replace(key, default=ours.get(key.name, key.default))
