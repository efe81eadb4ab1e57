"""Rollouts by transformers' continuous batching: whole, and without a cast of what is trained."""

import functools
from typing import Any

import torch

from toolkit.errors import TrainingError

HALF = (torch.bfloat16, torch.float16)


def whole_batches(model: Any) -> None:
    """Have `generate_batch` give a completion of every prompt or stop, and training its precision.

    transformers 5.23 (continuous_api.py) logs a request that failed and leaves it out, and TRL 1.16
    (grpo_trainer.py, _generate_single_turn) goes on with the others in the wrong places. Before it
    generates in mixed precision, TRL casts the model, adapters too, for good: their small steps
    would then be lost to rounding.

    Args:
        model: what is trained, with an adapter or whole.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    generate_batch, to = base.generate_batch, model.to

    @functools.wraps(generate_batch)
    def whole(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        made = generate_batch(inputs, *args, **kwargs)
        failed = [each.error for each in made.values() if each.error is not None]
        missing = len(inputs) - len(made)
        if failed or missing:
            said = " ".join(str(failed[0]).split()) if failed else "its log says why"
            raise TrainingError(
                f"use_transformers_continuous_batching: {len(failed) + missing:,} of {len(inputs):,} "
                f"completions were not made ({said}); lower max_memory_percent in "
                "transformers_continuous_batching_config, or leave the key out"
            )
        return made

    @functools.wraps(to)
    def keep(*args: Any, **kwargs: Any) -> Any:
        return model if args and args[0] in HALF else to(*args, **kwargs)

    base.generate_batch = whole
    model.to = keep
