"""How a rollout by transformers is sampled on a CPU: merged, in the run's precision, in our loop."""

from typing import Any

import torch
from peft import PeftModel
from trl import GRPOTrainer

from toolkit.models.merging import merge_while_generating
from toolkit.models.rollout import fast_generation
from toolkit.stages.early_rewards import early_rewards


def sample_fast(trainer: GRPOTrainer, trained: Any, fast: bool) -> None:
    """Have what is trained be sampled as fast as was measured, and its rewards begin meanwhile.

    Args:
        trainer: with its rewards.
        trained: what it trains, with an adapter or whole.
        fast: false leaves the loop and its precision to transformers.
    """
    early = early_rewards(trainer) if fast else None
    ended = early and early.ended
    if isinstance(trained, PeftModel):
        dtype = torch.bfloat16 if trainer.args.bf16 else None
        merge_while_generating(trained, fast=fast, dtype=dtype, ended=ended)
    elif fast:
        trained.generate = fast_generation(trained.generate, ended)
