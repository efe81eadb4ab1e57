"""What every engine can do: complete prompts, each with its own seed, adapter, limits and stops.

Whatever thinks over an engine needs no more than this, so it runs over each of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

BASE = "base"
"""As `adapter` of a prompt: the base alone, without any adapter."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, in the words of a recipe.

    Attributes:
        max_completion_length: tokens of a completion at most.
        temperature: 0 takes the likeliest token.
        top_p: the share of probability that is sampled from.
        top_k: how many tokens are sampled from; 0 for all.
    """

    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Prompt:
    """What is completed.

    Attributes:
        input_ids: its tokens.
        seed: the same prompt and seed give the same completion in any batch.
        stop_strings: what ends the completion beside a stop token, for a base that knows none.
        where: how messages name it, such as "exam.jsonl, row 3".
        adapter: who completes it, of several over one base: its name, or `BASE` for none of them;
            None is the model as it was given to the engine.
        max_tokens: where it ends at the latest, if before `max_completion_length`; the tokens up
            to there are the same.
        deadline: of `time.monotonic()`; it ends with the first step that is finished after it, and
            has no token where it had not begun.
    """

    input_ids: list[int]
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    where: str = "a prompt"
    adapter: str | None = None
    max_tokens: int | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: without stop token, special tokens, and the stop string and what follows it.
        input_ids: every token it wrote, a stop token included.
        stopped: whether a stop token or stop string ended it, not a limit.
    """

    text: str
    input_ids: list[int]
    stopped: bool


def longest(prompt: Prompt, sampling: Sampling) -> int:
    """How many tokens the completion of a prompt may have."""
    own = prompt.max_tokens
    return (
        sampling.max_completion_length if own is None else min(own, sampling.max_completion_length)
    )


class Engine(Protocol):
    """A model that completes prompts, with any number of adapters over it."""

    tokenizer: PreTrainedTokenizerBase

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Complete every prompt.

        The same prompt, seed, adapter and sampling give the same completion, whatever else is asked
        for with it.

        Yields:
            The index of a prompt and its completion, in any order.

        Raises:
            RecipeError: at the call, if a prompt leaves no room for its completion, or there is no
                such adapter.
            DataError: at the call, if a prompt is empty.
        """
        ...

    def log_probabilities(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """The natural logarithm of the probability of every token of an answer, at temperature 1.

        Args:
            prompts: what is answered; of each its tokens and its adapter count.
            answers: the tokens of an answer to each, at least one.
        """
        ...
