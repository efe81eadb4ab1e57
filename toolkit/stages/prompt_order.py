"""The order in which prompts come, the same whether training was interrupted or not."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


class PromptOrder(Sampler[int]):
    """TRL's RepeatSampler, which goes on where it was.

    In TRL 1.16 (trainer/utils.py) each epoch draws its order from one generator. A resumed training
    has a new one, and would ask again what it asked in its first epoch.

    Args:
        sampler: TRL's.
        trainer: whose state says how many epochs have passed.
    """

    def __init__(self, sampler: Any, trainer: Any):
        self.sampler = sampler
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        """The indices of one epoch."""
        if self.sampler.shuffle:
            generator = self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(int(self.trainer.state.epoch or 0)):
                torch.randperm(self.sampler.num_samples, generator=generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
