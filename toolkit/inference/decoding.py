"""What is put into the loop of transformers' `generate`: how a token is drawn, and what ends a row.

Shapes: B rows of a batch, S steps at most, V words of the vocabulary.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from toolkit.errors import TrainingError
from toolkit.inference.engine import Prompt


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """One number in [0, 1) per row and step, each row's from its own seed.

    A seed's first numbers are the same whatever the number of steps and of rows.

    Args:
        seeds: one per row.
        steps: how many tokens a row may have.

    Returns:
        float64 on the CPU, shape (B, S).
    """
    rows = [
        torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(rows)


def draw(scores_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token of each row where the cumulated probability passes the row's uniform number.

    Args:
        scores_BV: logits; minus infinity is never drawn.
        uniforms_B: in [0, 1), float64, on the device of the scores.

    Returns:
        Token ids, shape (B,).
    """
    # In float32 the sum loses the tokens of small probability
    cumulated_BV = scores_BV.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # A float64 below 1 times the sum is below the sum, also when rounded: some token always passes
    threshold_B1 = uniforms_B[:, None] * cumulated_BV[:, -1:]
    passed_BV = cumulated_BV > threshold_B1
    return passed_BV.to(torch.uint8).argmax(dim=-1)  # the first that has passed


class SeededDraw(LogitsProcessor):
    """Leaves each row the one token that it draws; the loop's argmax then takes it.

    Args:
        uniforms_BS: what each row draws with, step by step.
        starts: where the completion of each row begins, behind its padded prompt.
    """

    def __init__(self, uniforms_BS: Tensor, starts: Sequence[int]):
        self.uniforms_BS = uniforms_BS
        self.starts_B1 = torch.tensor(starts, device=uniforms_BS.device)[:, None]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of shape (B, V) with one token left in each row."""
        numbers_B = self.uniforms_BS.gather(1, input_ids.shape[1] - self.starts_B1)[:, 0]
        # Apple's devices have no float64
        device = torch.device("cpu") if scores.device.type == "mps" else scores.device
        drawn_B = draw(scores.to(device), numbers_B.to(device))
        only_BV = torch.full_like(scores, -torch.inf)
        return only_BV.scatter_(1, drawn_B[:, None].to(scores.device), 0.0)


class RefuseNaN(LogitsProcessor):
    """Stops where a model gives no numbers, whose completions would look empty but finished.

    Args:
        prompt_length: tokens of the padded prompts; only the first step is looked at, or that of
            the rows that came last.
    """

    def __init__(self, prompt_length: int):
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are.

        Raises:
            TrainingError: if one is NaN.
        """
        if input_ids.shape[1] == self.prompt_length and scores.isnan().any():
            raise TrainingError(
                "the model gives NaN instead of probabilities; its weights or its dtype are to "
                "blame: look at the losses of its training, or load it with dtype: float32"
            )
        return scores


def warpers(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    """How transformers itself changes probabilities, in its own order, less what changes nothing."""
    found = LogitsProcessorList()
    if temperature != 1.0:
        found.append(TemperatureLogitsWarper(temperature))
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        found.append(TopPLogitsWarper(top_p))
    return found


class StopStrings(StoppingCriteria):
    """Ends each row at its own stop strings.

    Args:
        tokenizer: decodes what a row ends with.
        strings: each row's stop strings; none for a row that only a stop token ends.
        starts: where the completion of each row begins, behind its padded prompt.

    Attributes:
        lengths: how many tokens a row had when a stop string was complete; None if it had none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        strings: Sequence[tuple[str, ...]],
        starts: Sequence[int],
    ):
        self.tokenizer = tokenizer
        self.strings = strings
        self.starts = starts
        self.lengths: list[int | None] = [None] * len(strings)
        longest = max((len(text.encode()) for row in strings for text in row), default=0)
        # A token has a byte at least; one more, for the space that some tokenizers strip in front
        self.tail = longest + 1

    @property
    def is_needed(self) -> bool:
        """Whether any row has a stop string."""
        return any(self.strings)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row has ended; bool, shape (B,)."""
        tails = input_ids[:, -self.tail :].tolist()
        for row, strings in enumerate(self.strings):
            if strings and self.lengths[row] is None:
                length = input_ids.shape[1] - self.starts[row]
                own = tails[row][-min(self.tail, length) :]
                text = self.tokenizer.decode(own, skip_special_tokens=True)
                if any(string in text for string in strings):
                    self.lengths[row] = length
        done = [length is not None for length in self.lengths]
        return torch.tensor(done, device=input_ids.device)


class Limits(StoppingCriteria):
    """Ends each row at its own number of tokens, or with the step in which its time runs out.

    Args:
        prompts: the batch, with `max_tokens` and `deadline`.
        starts: where the completion of each row begins, behind its padded prompt.
        clock: gives the seconds that deadlines are in; by default `time.monotonic`.

    Attributes:
        lengths: how many tokens a row had when it came to its limit; None if it did not.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        starts: Sequence[int],
        clock: Callable[[], float] | None = None,
    ):
        self.prompts = prompts
        self.starts = starts
        self.clock = clock or time.monotonic
        self.lengths: list[int | None] = [None] * len(prompts)

    @property
    def is_needed(self) -> bool:
        """Whether any row has a limit of its own."""
        return any(
            each.max_tokens is not None or each.deadline is not None for each in self.prompts
        )

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row has come to its limit; bool, shape (B,)."""
        now = self.clock()
        for row, prompt in enumerate(self.prompts):
            length = input_ids.shape[1] - self.starts[row]
            full = prompt.max_tokens is not None and length >= prompt.max_tokens
            late = prompt.deadline is not None and now >= prompt.deadline
            if self.lengths[row] is None and (full or late):
                self.lengths[row] = length
        done = [length is not None for length in self.lengths]
        return torch.tensor(done, device=input_ids.device)
