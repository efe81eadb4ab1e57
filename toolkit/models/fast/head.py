"""Log-probabilities of labels, whose gradient is made while their logits are at hand.

A token's log-probability depends on no other token's hidden state, so its gradient can be made before
the loss is known, and be multiplied in the backward pass by what the loss makes of it. TRL 1.16
(trl/kernels/chunked_logprob.py) computes the logits a second time instead.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

TILE = 2**24
"""Logits that are held at a time."""
STRIP = 2**18
"""Of these, what is worked on at a time: few enough to stay in a core's cache."""


class LabelLogProbs(torch.autograd.Function):
    """TRL's ChunkedLogProbFunction, with the gradient made in the forward pass.

    The head is frozen, but for the rows of added tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Tensor | None,
        index: Tensor | None,
        targets: Tensor,
        temperature: float,
        softcap: float | None,
        logit_scale: float,
        outputs: Sequence[str],
    ) -> tuple[Tensor | None, ...]:
        """Score N tokens.

        Args:
            ctx: autograd's.
            hidden: hidden states, (N, H).
            weight: of the head, (V, H), trained rows in their place.
            rows: the trained rows, (R, H), for their gradient.
            index: which rows these are, (R,).
            targets: the labels, (N,).
            temperature: that the logits are divided by.
            softcap: of the logits, where the model has one.
            logit_scale: that the logits are multiplied by.
            outputs: what else of TRL's outputs is computed.

        Returns:
            Log-probabilities, entropies, log of the sum of squared probabilities, mean logits and
            whether the label is the likeliest token, (N,) each; None for what is not asked for.
        """
        ctx.set_materialize_grads(False)
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        head = weight.to(dtype)
        learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
        slopes = hidden.new_empty(hidden.shape) if learns else None
        own = hidden.new_empty(len(hidden), 0 if index is None else len(index))
        names = ("log_probs", *outputs)
        found = {name: hidden.new_empty(len(hidden), dtype=torch.float32) for name in names}
        size = max(1, TILE // len(weight))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            tile = hidden[part].to(dtype) @ head.t()
            with torch.autocast(device, enabled=False):
                into = {name: tensor[part] for name, tensor in found.items()}
                score(tile, targets[part], temperature, softcap, logit_scale, into)
            if slopes is not None:
                slopes[part] = (tile @ head).to(slopes.dtype)
                if index is not None:
                    own[part] = tile[:, index].to(own.dtype)
        ctx.save_for_backward(slopes, own, hidden, weight, targets, index)
        ctx.scored = temperature, softcap, logit_scale, dtype
        if "is_top1" in found:
            found["is_top1"] = found["is_top1"] > 0
        others = [found.get(name) for name in ("log_sum_sq_probs", "mean_logits", "is_top1")]
        ctx.mark_non_differentiable(*(each for each in others if each is not None))
        return found["log_probs"], found.get("entropy"), *others

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the hidden states and of the trained rows."""
        of_log_probs, of_entropy, *_ = gradients
        slopes, own, hidden, weight, targets, index = ctx.saved_tensors
        of_hidden = of_rows = None
        if of_log_probs is not None:
            of_hidden = of_log_probs[:, None].to(slopes.dtype) * slopes
            if ctx.needs_input_grad[2]:
                of_rows = (of_log_probs[:, None] * own).t().to(hidden.dtype) @ hidden
        if of_entropy is not None:
            more, whole = entropy_gradients(hidden, weight, targets, of_entropy, *ctx.scored)
            of_hidden = more if of_hidden is None else of_hidden + more
            if ctx.needs_input_grad[2]:
                of_rows = whole[index] if of_rows is None else of_rows + whole[index]
        return of_hidden, None, of_rows, None, None, None, None, None, None


def score(
    tile: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    found: dict[str, Tensor],
) -> None:
    """Write what is asked of some tokens, and their slopes in place of their logits, (n, V).

    Arguments as of `fold`, but for the precision of the logits.
    """
    few = max(1, STRIP // tile.shape[1])
    for start, strip in zip(range(0, len(tile), few), tile.split(few), strict=True):
        some = slice(start, start + few)
        into = {name: tensor[some] for name, tensor in found.items()}
        strip.copy_(fold(strip.float(), targets[some], temperature, softcap, logit_scale, into))


def fold(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    found: dict[str, Tensor],
) -> Tensor:
    """Write what is asked of some tokens, and give the slope of their log-probability.

    Args:
        logits: float32, (n, V); overwritten.
        targets: the labels, (n,).
        temperature: as of `LabelLogProbs`, like the next two.
        softcap: of the logits.
        logit_scale: of the logits.
        found: by name, where to write, (n,) each.

    Returns:
        The derivative of each log-probability by what the head gave, (n, V).
    """
    if logit_scale != 1.0:
        logits *= logit_scale
    bent = None
    if softcap is not None:
        bent = torch.tanh(logits / softcap)
        logits = softcap * bent
    if temperature != 1.0:
        logits /= temperature
    if "mean_logits" in found:
        found["mean_logits"].copy_(logits.mean(-1))
    largest, likeliest = logits.max(-1)
    if "is_top1" in found:
        found["is_top1"].copy_(likeliest == targets)
    logits -= largest[:, None]
    label = logits.gather(1, targets[:, None])[:, 0]
    shares = logits.exp()
    total = shares.sum(-1)
    found["log_probs"].copy_(label - total.log())
    if "entropy" in found:
        found["entropy"].copy_(total.log() - logits.mul_(shares).sum(-1) / total)
    if "log_sum_sq_probs" in found:
        found["log_sum_sq_probs"].copy_(shares.square().sum(-1).log() - 2 * total.log())
    slope = shares.mul_(-1 / total[:, None])
    slope.scatter_add_(1, targets[:, None], torch.ones_like(label)[:, None])
    if bent is not None:
        slope *= 1 - bent**2
    if logit_scale != temperature:
        slope *= logit_scale / temperature
    return slope


def entropy_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    of_entropy: Tensor,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """What a loss with entropies in it adds, as TRL computes it; of hidden states and of the head."""
    with torch.enable_grad(), torch.autocast(hidden.device.type, dtype, dtype != hidden.dtype):
        states, head = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        said: Any = ChunkedLogProbFunction.apply(
            states, head, None, targets, temperature, 2**15, softcap, logit_scale, ("entropy",)
        )
        slopes, whole = torch.autograd.grad(said[1], (states, head), of_entropy)
    return slopes, whole
