"""Completions that are left out of what is learnt, because a reward failed on them."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.rewards.checked import SKIP, Checked

DUMP = "All reward functions returned None"  # TRL 1.16, with a whole row behind it


def leave_out_failed(trainer: Any, rewards: Sequence[Checked]) -> None:
    """Give a completion no reward at all where one of its rewards failed.

    TRL adds up those that there are, as is right where a reward has nothing to say. Of a completion
    whose reward failed, they would say that it is worse than the others of its group. Without any
    reward it has no advantage, and is in no mean.

    Args:
        trainer: a GRPOTrainer.
        rewards: its rewards, all of which stop training where they fail, or none.
    """
    if not any(reward.on_error.does == SKIP for reward in rewards):
        return
    calculate = trainer._calculate_rewards

    def calculated(*args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = calculate(*args, **kwargs)
        failed = [any(each) for each in zip(*(reward.missing for reward in rewards), strict=True)]
        # in every process, whatever happened in this one; PPO reads the same tensor
        everywhere = trainer.accelerator.gather(torch.tensor(failed, device=found.device))
        return found.masked_fill_(everywhere[:, None], torch.nan)

    trainer._calculate_rewards = calculated


def keep_rows_out_of_the_log() -> None:
    """Silence TRL's warning that shows a whole row; what has no score is counted there."""
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_no_row)


def _is_no_row(record: logging.LogRecord) -> bool:
    return DUMP not in str(record.msg)
