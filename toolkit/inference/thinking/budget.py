"""What a question may cost: tokens, which are kept exactly, and seconds, within one step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

UNLIMITED = 2**31


@dataclass
class Budget:
    """What may be spent on one question, and what has been.

    A token is one that a model writes, or that is put into its mouth; those of prompts are not
    counted.

    Attributes:
        tokens: at most so many; None for no limit.
        seconds: at most so long from the first completion, and the decoding step that is on its way
            when they are over; None for no limit.
        clock: gives seconds.
        spent: tokens so far.
        deadline: on the clock, once it runs.
    """

    tokens: int | None = None
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    spent: int = 0
    deadline: float | None = field(default=None, init=False)

    @property
    def left(self) -> int:
        """Tokens that can be spent now; none when the time is over."""
        if self.deadline is not None and self.clock() >= self.deadline:
            return 0
        return UNLIMITED if self.tokens is None else self.tokens - self.spent

    def fits(self, longest: int) -> int:
        """How many completions can be written side by side, whatever their lengths turn out to be.

        Asked again and again, it gives what writing one after the other would give: each to its full
        length as long as that is there, and a last one that ends with the budget.

        Args:
            longest: tokens of a completion at most.
        """
        return self.left // longest or min(1, self.left)

    def start(self) -> None:
        """Let the time run, unless it does."""
        if self.deadline is None and self.seconds is not None:
            self.deadline = self.clock() + self.seconds

    def spend(self, tokens: int) -> None:
        """Count tokens that were written."""
        self.spent += tokens
        assert self.tokens is None or self.spent <= self.tokens, "an engine wrote beyond its limit"
