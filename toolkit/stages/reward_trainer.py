"""TRL's RewardTrainer on pairs with weights, exact where they do not divide into batches.

In TRL 1.16 every pair counts the same, however many its prompt has; what is held out is measured by
means of the means of batches; and what the last batch of an epoch trains depends on the number of
processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers.trainer_utils import EvalLoopOutput
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from toolkit.errors import TrainingError
from toolkit.evaluation.pair_report import pair_scores
from toolkit.models import adapters
from toolkit.stages.batches import BlankRows
from toolkit.stages.preferences import TOKENS, token_counts

ANSWERS = ("chosen", "rejected")


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's collator, given a prompt and two answers, with each pair's weight and its place."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: the sequences with the chosen answers, then the others, filled on the right."""
        sequences = [
            {f"{name}_ids": [*pair["prompt_ids"], *pair[f"{name}_ids"]] for name in ANSWERS}
            for pair in examples
        ]
        return super().torch_call(sequences) | {
            "weight": torch.tensor([pair["weight"] for pair in examples], dtype=torch.float32),
            "pair": torch.tensor([pair["pair"] for pair in examples]),
        }


class WeightedRewardTrainer(BlankRows, RewardTrainer):
    """A RewardTrainer in whose loss each prompt counts once, and which reports exactly.

    The loss is TRL's, of the pair's weight: the weights have a mean of 1 over the data, and a step's
    loss is divided by its number of pairs, so the division into batches does not matter.

    Args:
        args, model, train_dataset, eval_dataset, …: as of RewardTrainer; a data set has `prompt_ids`,
            `chosen_ids`, `rejected_ids`, `weight` and `prompt_index`.
    """

    args: Any
    # the loss is divided by the pairs of the whole step
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any):
        for split in ("train_dataset", "eval_dataset"):
            if kwargs.get(split) is not None:
                kwargs[split] = placed(kwargs[split])
        super().__init__(*args, **kwargs)
        self.data_collator = PairCollator(
            pad_token_id=self.processing_class.pad_token_id,  # pyright: ignore
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )
        # TRL trains an adapter over a quantized base in bfloat16, and resumes it in float32
        adapters.as_float32(self.model)
        self.scored: dict[int, tuple[float, float]] = {}
        self.held_out: list[dict[str, Any]] = []
        self.found: dict[str, Any] = {}
        self.fill_with(blank_pair)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of a step, and the pairs in it over all processes."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        pairs = sum(int((batch["weight"] > 0).sum()) for batch in batches)
        every = self.accelerator.gather(torch.tensor([pairs], device=self.args.device))
        return batches, every.sum().clamp(min=1)  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss of a batch, weighted; of what is held out, the scores are kept."""
        ids, mask, place = inputs["input_ids"], inputs["attention_mask"], None
        if not model.training:
            ids, mask, place = different_rows(ids, mask)
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False)
        if place is not None:
            outputs.logits = outputs.logits[place]
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        weight = inputs["weight"]
        losses = weight * pair_losses(chosen, rejected, self.args.center_rewards_coefficient)
        if model.training:
            self.note_batch(chosen.detach(), rejected.detach(), weight > 0, inputs)
            # DDP takes the mean over processes, of which each has its part of the sum
            loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        else:
            scores = zip(chosen.tolist(), rejected.tolist(), strict=True)
            self.scored |= zip(inputs["pair"].tolist(), scores, strict=True)
            loss = losses.mean()
        return (loss, outputs) if return_outputs else loss

    def note_batch(
        self, chosen: Tensor, rejected: Tensor, real: Tensor, inputs: Mapping[str, Any]
    ) -> None:
        """TRL's metrics of a batch, over the pairs of all processes; blank ones are left out."""
        mine = torch.stack([chosen, rejected, real.float()], dim=1)
        every: Any = self.accelerator.gather(mine)
        chosen, rejected = every[every[:, 2] > 0][:, :2].unbind(1)
        mine = inputs["attention_mask"].sum(1) * real.repeat(2)
        tokens: Any = self.accelerator.gather(mine.sum())
        self._total_train_tokens += int(tokens.sum())
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self._total_train_tokens]
        if not len(chosen):
            return
        scores = torch.cat([chosen, rejected])
        right = (chosen > rejected).float() + (chosen == rejected).float() / 2
        for name, value in (
            ("min_reward", scores.min()),
            ("mean_reward", scores.mean()),
            ("max_reward", scores.max()),
            ("accuracy", right.mean()),
            ("margin", (chosen - rejected).mean()),
        ):
            metrics[name].append(value.item())

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The evaluation: every pair once, whatever the batches and the processes.

        Raises:
            TrainingError: if a score is not finite.
        """
        self.scored = {}
        output = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        for part in gather_object([self.scored]):
            self.scored |= part
        self.held_out = scored_pairs(dataloader.dataset, self.scored)
        self.found = pair_scores(self.held_out)
        weight = torch.tensor([pair["weight"] for pair in self.held_out])
        chosen, rejected = (
            torch.tensor([pair[name] for pair in self.held_out], dtype=torch.float64)
            for name in ANSWERS
        )
        losses = weight * pair_losses(chosen, rejected, self.args.center_rewards_coefficient)
        scores = torch.cat([chosen, rejected])
        measured = {
            "loss": float(losses.mean()),
            "accuracy": self.found["accuracy"],
            "accuracy_low": self.found["low"],
            "accuracy_high": self.found["high"],
            "margin": self.found["margin"],
            "calibration_error": self.found["calibration_error"],
            "min_reward": float(scores.min()),
            "mean_reward": float(scores.mean()),
            "max_reward": float(scores.max()),
        }
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{key}": measured[key] for key in measured})
        return output


def different_rows(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a batch that differ: an answer of a ranked list is in many of its pairs.

    Args:
        input_ids: token ids, of shape (B, T).
        attention_mask: 1 where there is a token, of the same shape.

    Returns:
        The same of the U rows that differ, (U, T); and which of them each row is, (B,).
    """
    both = torch.stack([input_ids, attention_mask])
    (ids, mask), place = both.unique(dim=1, return_inverse=True)
    return ids, mask, place


def pair_losses(chosen: Tensor, rejected: Tensor, centre: float | None) -> Tensor:
    """TRL's loss of each pair: how unlikely the preference is, and how far from 0 the scores are.

    Args:
        chosen: scores of the answers that were preferred, of shape (B,).
        rejected: scores of the others.
        centre: `center_rewards_coefficient`.

    Source:
        Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1; the centring of
        Eisenstein et al. 2023, arXiv 2312.09244, equation 2.
    """
    losses = -logsigmoid(chosen - rejected)
    return losses if centre is None else losses + centre * (chosen + rejected) ** 2


def placed(pairs: Dataset) -> Dataset:
    """Pairs with their place in the data set, and weights whose mean is 1."""
    if "pair" in pairs.column_names:
        return pairs
    weights = pairs["weight"][:]
    scale = len(pairs) / sum(weights)
    scaled: Any = pairs.remove_columns("weight").add_column(
        "weight", [weight * scale for weight in weights]
    )
    return scaled.add_column("pair", list(range(len(pairs))))


def blank_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair without weight, as short as can be, that fills a batch."""
    first = [*pair["prompt_ids"], *pair["chosen_ids"]][:1]
    empty = {name: [] for name in TOKENS}
    return {**pair, **empty, "prompt_ids": first, "weight": 0.0, "pair": -1}


def scored_pairs(pairs: Dataset, scores: Mapping[int, Sequence[float]]) -> list[dict[str, Any]]:
    """Every pair of a data set with its two scores and the lengths of its answers.

    Raises:
        TrainingError: if a score is not finite.
    """
    lengths = [token_counts(pairs, f"{name}_ids").tolist() for name in ANSWERS]
    places = zip(pairs["prompt_index"], pairs["weight"], *lengths, strict=True)
    found = []
    for pair, (prompt, weight, chosen_tokens, rejected_tokens) in enumerate(places):
        chosen, rejected = scores[pair]
        if not torch.tensor([chosen, rejected]).isfinite().all():
            raise TrainingError(
                f"held-out pair {pair + 1:,} has the scores {chosen} and {rejected}; lower "
                "learning_rate, or look at the last steps in log.jsonl"
            )
        found.append(
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "chosen_tokens": chosen_tokens,
                "rejected_tokens": rejected_tokens,
                "weight": weight,
            }
        )
    return found
