"""TRL's SFTTrainer, exact where rows do not divide into batches.

Two numbers of TRL 1.16 on transformers 5.23 depend on the number of processes and on the batch
size: what the last batch of an epoch trains, and the held-out loss, a mean of the means of batches.
"""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import gather_object
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from toolkit.data.sequences import IGNORED
from toolkit.models import adapters
from toolkit.stages.batches import BlankRows, with_blanks

BLANK_TOKENS = 2  # the fewest of which a model can foretell one


class TokenExactSFTTrainer(BlankRows, SFTTrainer):
    """An SFTTrainer whose held-out loss is the mean over tokens, and whose epochs hold a row once."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.held_out = [0.0, 0]  # summed loss, and its tokens
        # TRL trains an adapter over a quantized base in bfloat16, and resumes it in float32
        adapters.as_float32(self.model)
        self.fill_with(blank_sequence)
        several = self.accelerator.num_processes
        if several > 1 and self.eval_dataset is not None:
            short = -len(self.eval_dataset) % (several * self.args.eval_batch_size)
            rows: Any = self.eval_dataset
            self.eval_dataset = with_blanks(rows, short, blank_sequence)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss; while rows are held out, its sum over tokens is kept."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tokens = int((inputs["labels"][:, 1:] != IGNORED).sum())
        # without a number of items, the loss is the mean over the tokens of this batch
        found: Any = super().compute_loss(model, inputs, return_outputs)
        self.held_out[0] += float(found[0] if return_outputs else found) * tokens
        self.held_out[1] += tokens
        return found

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The evaluation, with the loss as the mean over all tokens of all processes."""
        self.held_out = [0.0, 0]
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = gather_object([tuple(self.held_out)])
        tokens = sum(count for _, count in sums)
        if output.metrics is not None and tokens:
            output.metrics[f"{metric_key_prefix}_loss"] = sum(loss for loss, _ in sums) / tokens
        return output


def blank_sequence(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sequence without loss, as short as can be, that fills a batch."""
    return {
        **row,
        "input_ids": row["input_ids"][:BLANK_TOKENS],
        "labels": [IGNORED] * BLANK_TOKENS,
        "seq_lengths": [BLANK_TOKENS],
    }
