"""A warm-up that is longer than the run: the learning rate would never be reached."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import RecipeError
from toolkit.recipe import StageRecipe


class WarmupFits(TrainerCallback):
    """Refuses such a run once its steps are counted, before the first of them.

    Args:
        recipe: the stage's keys.
    """

    def __init__(self, recipe: StageRecipe):
        self.where = recipe.where.get("warmup_steps", f"stage {recipe.name!r}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the two.

        Raises:
            RecipeError: naming both.
        """
        if args.warmup_steps >= 1 and args.warmup_steps > state.max_steps:
            raise RecipeError(
                f"{self.where}: warmup_steps {args.warmup_steps:,.0f} is more than the "
                f"{state.max_steps:,} steps of this run; the learning rate would never be reached: "
                "write a share of them, such as warmup_steps: 0.1"
            )
