"""What may differ from the run that is resumed: `--allow-change KEY`, and `--fresh-optimizer`."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from toolkit.artifacts.manifest import INPUTS
from toolkit.errors import RecipeError, UsageError
from toolkit.recipe import Recipe, keys_of
from toolkit.recipe.keys import did_you_mean

# With another value of these, the tensors of a checkpoint have other names, shapes or meanings.
OF_THE_TENSORS = (
    "stage", "use_peft", "lora_r", "lora_target_modules", "lora_target_parameters",
    "lora_modules_to_save", "lora_task_type", "use_dora", "optim", "optim_args", "start_from",
    "value_start_from", "load_in_4bit", "load_in_8bit",
)  # fmt: skip


def asked_for(recipe: Recipe, allow_change: Sequence[str], *, fresh_optimizer: bool) -> Recipe:
    """A recipe whose stages know what the command allows them when they are resumed.

    Raises:
        UsageError: if a word is no key of any stage and no word of INPUTS.
        RecipeError: if a checkpoint does not go with another value of a key.
    """
    known = {*INPUTS, *(key for stage in recipe.stages for key in keys_of(stage.stage))}
    for word in allow_change:
        if word not in known:
            raise UsageError(
                f"--allow-change: expected a recipe key or one of {', '.join(INPUTS)}, found "
                f"{word!r}{did_you_mean(word, known)}"
            )
        if word in OF_THE_TENSORS:
            raise RecipeError(
                f"--allow-change {word}: a checkpoint does not go with another {word}; --overwrite "
                "begins anew, or give another output_dir"
            )
    if not allow_change and not fresh_optimizer:
        return recipe
    stages = tuple(
        replace(stage, allow_change=tuple(allow_change), fresh_optimizer=fresh_optimizer)
        for stage in recipe.stages
    )
    return replace(recipe, stages=stages)


def others(
    found: Sequence[tuple[str, str]], allow_change: Collection[str], tell: Callable[[str], Any]
) -> list[str]:
    """The changes that were not allowed; those that were are told.

    Args:
        found: as of `manifest.changes`.
        allow_change: names that may differ.
        tell: called with one line.
    """
    meant = [phrase for name, phrase in found if name in allow_change]
    if meant:
        tell(f"changed since it was interrupted, and allowed: {'; '.join(meant)}")
    return [phrase for name, phrase in found if name not in allow_change]
