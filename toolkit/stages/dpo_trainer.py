"""TRL's DPOTrainer of pairs that are tokens already, exact where they do not divide into batches.

In TRL 1.16 (trainer/dpo_trainer.py) a step's loss is a mean of the means of batches, and what the
last batch of an epoch trains depends on the number of processes.
"""

import functools
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOTrainer

from toolkit.models.copies import added_as_copies, copy_adapter
from toolkit.stages.batches import BlankRows
from toolkit.stages.preferences import all_ids

POLICY, REFERENCE = "default", "ref"
TOGETHER = {"aot", "aot_unpaired", "sft"}
"""Losses of a batch that are no mean over its pairs."""
MEANS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
         "logps/chosen", "logps/rejected")  # fmt: skip
BLANK_TOKENS = 2  # the fewest of which a model can foretell one


class TokenDPOTrainer(BlankRows, DPOTrainer):
    """A DPOTrainer of pairs that are tokens already, whose reference is exactly where it started.

    Args:
        model: the policy; an adapter is called `default`.
        *args, **kwargs: as of DPOTrainer; a data set has `prompt_ids`, `chosen_ids` and
            `rejected_ids`.
    """

    args: Any
    loss_is_scaled_for_ga = True  # it is divided by the pairs of the whole step

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        adapter = isinstance(model, PeftModel)
        with added_as_copies(model) if adapter else nullcontext():
            super().__init__(model, *args, **kwargs)
        if adapter:
            # over a quantized base TRL has rounded the policy, and not its copy, to bfloat16
            copy_adapter(model, REFERENCE, POLICY)
            # the reference is made again of what the stage starts from
            saved: Any = model
            saved.save_pretrained = functools.partial(
                model.save_pretrained, selected_adapters=[POLICY]
            )

        if not TOGETHER & set(self.loss_types):
            self.fill_with(blank_pair)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of a step, and the pairs in it over all processes."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        pairs = sum(int(is_pair(batch).sum()) for batch in batches)
        every = self.accelerator.gather(torch.tensor([pairs], device=self.args.device))
        return batches, every.sum().clamp(min=1)  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss of a batch, which counts as many times as the batch has pairs."""
        found: Any = super().compute_loss(model, inputs, return_outputs)
        if not model.training or num_items_in_batch is None:
            return found
        loss = found[0] if return_outputs else found
        real = is_pair(inputs)
        blank = len(real) - int(real.sum())
        self.without_blanks(blank, len(real))
        if blank:
            loss = loss - blank / len(real) * blank_loss(self)
        # DDP takes the mean over processes, of which each has its part of the sum
        loss = loss * len(real) / num_items_in_batch * self.accelerator.num_processes
        return (loss, found[1]) if return_outputs else loss

    def without_blanks(self, blank: int, size: int) -> None:
        """Have TRL's means of this batch be those of pairs: what is blank is 0 in all of them."""
        if not self.filled:
            return
        counts: Any = self.accelerator.gather(torch.tensor([blank, size], device=self.args.device))
        blanks, rows = counts.view(-1, 2).sum(0).tolist()
        if 0 < blanks < rows:
            for name in MEANS:
                self._metrics["train"][name][-1] *= rows / (rows - blanks)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing to do: TRL 1.16 (dpo_trainer.py) would render and tokenize in its own way."""
        return dataset if isinstance(dataset, Dataset) else super()._prepare_dataset(dataset, *args)


def blank_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair of two empty answers, as short as can be, that fills a batch."""
    logps = {name: 0.0 for name in ("ref_chosen_logps", "ref_rejected_logps") if name in pair}
    empty = {"prompt_ids": all_ids(pair)[:BLANK_TOKENS], "chosen_ids": [], "rejected_ids": []}
    return {**pair, **empty, **logps}


def is_pair(batch: Mapping[str, Tensor]) -> Tensor:
    """Which rows of a batch have an answer; the others are blank, (B,)."""
    chosen, rejected = batch["completion_mask"].chunk(2)
    return chosen.any(dim=1) | rejected.any(dim=1)


def blank_loss(trainer: Any) -> float:
    """What TRL's loss is for a pair of which policy and reference say the same."""
    beta, smoothing, log2 = trainer.beta, trainer.label_smoothing, math.log(2)
    losses = {
        "sigmoid": log2, "sigmoid_norm": log2, "robust": log2, "nca_pair": 2 * log2,
        "bco_pair": 2 * log2, "hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0,
        "ipo": (1 / (2 * beta)) ** 2, "sppo_hard": 2 * (0.5 / beta) ** 2,
        "discopop": (log2 + 1) / 2,
    }  # fmt: skip
    if smoothing:
        losses["exo_pair"] = -log2 - (math.log1p(-smoothing) + math.log(smoothing)) / 2
    weighted = zip(trainer.loss_types, trainer.loss_weights, strict=True)
    return sum(weight * losses[name] for name, weight in weighted)
