"""A user's own trainer in place of the stage's: `trainer_class`."""

import inspect
from typing import Any, TypeVar

from toolkit.errors import RecipeError
from toolkit.recipe import StageRecipe
from toolkit.rewards.registry import imported
from toolkit.stages.checkpoints import resumable

T = TypeVar("T")


def trainer_class_of(recipe: StageRecipe, default: type[T], given: Any = None) -> type[T]:
    """The class whose trainer a stage builds, with checkpoints that are whole or not there.

    Args:
        recipe: may name one, as file.py:Class or package.module:Class.
        default: the stage's own, of which it must be a subclass.
        given: one from Python, which wins.

    Raises:
        RecipeError: if it is no such class.
    """
    name = recipe["trainer_class"]
    found = given if given is not None else imported(name, "trainer_class") if name else default
    if not (inspect.isclass(found) and issubclass(found, default)):
        raise RecipeError(
            f"trainer_class: expected a subclass of {default.__module__}.{default.__name__}, found "
            f"{getattr(found, '__name__', found)!r}"
        )
    return resumable(found)
