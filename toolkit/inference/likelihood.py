"""What a model gives for text that is there: the probability of every token, or one score."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def log_probabilities(
    model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[list[float]]:
    """The log-probability of every token of the answers, one batch.

    Args:
        model: a causal language model in evaluation mode.
        rows: token ids of a prompt and of its answer, at least one each.

    Returns:
        Natural logarithms in float32, at temperature 1.
    """
    input_ids, mask = padded([[*prompt, *answer] for prompt, answer in rows], model.device)
    logits_BLV = model(input_ids=input_ids, attention_mask=mask).logits
    found = []
    for row, (prompt, answer) in enumerate(rows):
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        logs_SV = logits_BLV[row, places].float().log_softmax(-1)
        ids_S1 = torch.tensor(list(answer), device=logs_SV.device)[:, None]
        found.append(logs_SV.gather(1, ids_S1)[:, 0].tolist())
    return found


def scores(model: Any, judge: str, rows: Sequence[Sequence[int]]) -> list[float]:
    """What a reward adapter beside the policy gives at the last token of each row, one batch.

    Args:
        model: with `add_scalar_heads`, in evaluation mode.
        judge: the adapter's name.
        rows: token ids of a prompt and its answer, at least one of each.
    """
    input_ids, mask = padded(rows, model.device)
    scalars_BL = model(input_ids=input_ids, attention_mask=mask, scalar_head=judge)
    last_B1 = torch.tensor([[len(row) - 1] for row in rows], device=scalars_BL.device)
    return scalars_BL.gather(1, last_B1)[:, 0].tolist()


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids filled up on the right, and 1 where there is a token; each of shape (B, L)."""
    most = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (most - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows], device=device)
    return ids, mask
