"""PPO's arithmetic on tensors: token rewards, advantages, whitening, the value loss.

Shapes: B completions of at most T tokens. The mask is 1 on the tokens that the policy chose, its
stop token included; a tool's words among them are 0, and time does not pass there.
"""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, per_token_kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The reward of each token: the KL penalty everywhere, the score at the end (InstructGPT).

    Args:
        scores: of whole completions, (B,).
        per_token_kl: log-ratio of the policy to the reference, (B, T).
        mask: (B, T).
        beta: weight of the penalty.

    Returns:
        Rewards of shape (B, T).
    """
    rewards = -beta * per_token_kl * mask
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(dim=1, keepdim=True)
    some = mask.any(dim=1, keepdim=True)  # a completion that is masked whole has no last token
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype) * some)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, eq. 16).

    Args:
        rewards: (B, T).
        values: of the state before each token, (B, T); after the last token the value is 0.
        mask: (B, T).
        gamma: discount per token.
        lam: 0 trusts the values alone, 1 the rewards alone.

    Returns:
        Advantages and returns, (B, T), 0 outside the mask; a return is advantage plus value.
    """
    advantages = torch.zeros_like(rewards)
    ahead = values.new_zeros(len(values))  # the value of the next state that the policy is in
    advantage = torch.zeros_like(ahead)
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t].bool()
        delta = rewards[:, t] + gamma * ahead - values[:, t]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        ahead = torch.where(here, values[:, t], ahead)
        advantages[:, t] = advantage * here
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """The values with mean 0 and variance 1, given their moments over every process; 0 outside."""
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange_value: float,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Half the squared error to the returns, the worse of clipped and not, mean over tokens.

    Args:
        values: by the value adapter as it is now, (B, T).
        old_values: when the completions were sampled, (B, T).
        returns: (B, T).
        mask: (B, T).
        cliprange_value: how far a value may move from the old one before it earns nothing.
        tokens: what the sum is divided by; by default the tokens of the mask.

    Returns:
        The loss, and where the clipped error is the one that counts, (B, T).
    """
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    error, clipped = (values - returns) ** 2, (near - returns) ** 2
    number = mask.sum().clamp(min=1) if tokens is None else tokens
    loss = 0.5 * (torch.max(error, clipped) * mask).sum() / number
    return loss, (clipped > error).float()
