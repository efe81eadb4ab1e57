"""A punishment of repeated n-grams: TRL's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import RecipeError
from toolkit.rewards.rows import Completion, pieces


@dataclass(frozen=True)
class Repetition:
    """TRL's `get_repetition_penalty_reward`: the share of n-grams that repeat an earlier one.

    Args:
        ngram_size: tokens of an n-gram; words where no `completion_ids` are passed.
        max_penalty: the reward of a completion that is nothing but repetition, 0 or less.
    """

    ngram_size: int = 3
    max_penalty: float = -1.0
    __name__ = "repetition"

    def __post_init__(self):
        if self.ngram_size < 1 or self.max_penalty > 0:
            raise RecipeError(
                f"reward repetition: ngram_size must be 1 or more and max_penalty 0 or less, found "
                f"{self.ngram_size} and {self.max_penalty}"
            )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion, from `max_penalty` to 0."""
        from trl.rewards import get_repetition_penalty_reward

        return get_repetition_penalty_reward(self.ngram_size, self.max_penalty)(
            pieces(completions, columns)
        )
