"""An engine that does not write again what is there, and whose model is loaded when it is needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from toolkit.inference.engine import Completion, Engine, Prompt, Sampling

Written = tuple[tuple[int, ...], int]
"""The tokens of a prompt, and its seed."""


class Remembering:
    """Gives completions that are kept, and has the others written.

    Args:
        load: gives the engine that writes.
        tokenizer: the engine's.
        known: completions by prompt and seed.
        sampling: how they were written; of another sampling nothing is known.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        tokenizer: PreTrainedTokenizerBase,
        known: Mapping[Written, Completion],
        sampling: Sampling,
    ):
        self.load, self.tokenizer, self.known, self.sampling = load, tokenizer, known, sampling

    @cached_property
    def engine(self) -> Engine:
        """The engine that writes."""
        return self.load()

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """As of `Engine`; a prompt with a deadline is always written, for that takes time."""
        found = [self.recalled(prompt, sampling) for prompt in prompts]
        yield from ((index, each) for index, each in enumerate(found) if each is not None)
        missing = [index for index, each in enumerate(found) if each is None]
        if missing:
            made = self.engine.generate([prompts[index] for index in missing], sampling)
            yield from ((missing[index], each) for index, each in made)

    def recalled(self, prompt: Prompt, sampling: Sampling) -> Completion | None:
        """What is kept, if it is within the prompt's limits."""
        kept = self.known.get((tuple(prompt.input_ids), prompt.seed))
        if kept is None or sampling != self.sampling or prompt.deadline is not None:
            return None
        is_whole = prompt.max_tokens is None or len(kept.input_ids) <= prompt.max_tokens
        return kept if is_whole else None

    def log_probabilities(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """As of `Engine`."""
        return self.engine.log_probabilities(prompts, answers)
