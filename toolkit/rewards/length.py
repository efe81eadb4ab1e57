"""Rewards for a completion's length: near a target, or a soft punishment of what is over-long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import RecipeError
from toolkit.rewards.rows import Completion, lengths, pieces


@dataclass(frozen=True)
class Length:
    """One of two rewards, by the parameters that are given.

    With `target`: 1 within `tolerance` of it, falling linearly to 0 at a distance of `target` more.
    With `max_completion_len` and `soft_punish_cache`: TRL's `get_soft_overlong_punishment`, DAPO's
    equation 13 (https://huggingface.co/papers/2503.14476): 0 up to their difference, falling to -1
    at `max_completion_len`, and -1 beyond.

    Args:
        target: the wanted length, in tokens; in words where no `completion_ids` are passed.
        tolerance: what it may be off, in the same unit.
        max_completion_len: the longest completion that is not punished in full, in tokens.
        soft_punish_cache: over how many tokens before it the punishment grows.
    """

    target: int | None = None
    tolerance: int = 0
    max_completion_len: int | None = None
    soft_punish_cache: int | None = None
    __name__ = "length"

    def __post_init__(self):
        given = (self.target, self.max_completion_len, self.soft_punish_cache)
        if [each is not None for each in given] not in ([True, False, False], [False, True, True]):
            raise RecipeError(
                "reward length: give target, and tolerance if you like, or max_completion_len and "
                "soft_punish_cache"
            )
        if self.target is not None:
            if self.target < 1 or self.tolerance < 0:
                raise RecipeError(
                    f"reward length: target must be 1 or more and tolerance 0 or more, found "
                    f"{self.target} and {self.tolerance}"
                )
        elif not 0 <= (self.soft_punish_cache or 0) <= (self.max_completion_len or 0):
            raise RecipeError(
                f"reward length: soft_punish_cache must be from 0 to max_completion_len, found "
                f"{self.soft_punish_cache} and {self.max_completion_len}"
            )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion."""
        if self.target is not None:
            target, found = self.target, lengths(completions, columns)
            beyond = [max(0, abs(length - target) - self.tolerance) for length in found]
            return [max(0.0, 1 - each / target) for each in beyond]
        from trl.rewards import get_soft_overlong_punishment

        assert self.max_completion_len is not None
        assert self.soft_punish_cache is not None
        punish = get_soft_overlong_punishment(self.max_completion_len, self.soft_punish_cache)
        return punish(pieces(completions, columns))
