"""PPO on completions as the papers write it: numpy float64, loops, no shared code.

- GAE: Schulman et al. 2015, arXiv:1506.02438, equations 11 to 16.
- PPO's clipped objective: Schulman et al. 2017, arXiv:1707.06347, equation 7.
- The KL penalty in the reward: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, equation 2,
  given token by token as in Ziegler et al. 2019, arXiv:1909.08593.
- Value clipping and whitening: Huang et al. 2024 (the N+ details), arXiv:2403.17031.

Arrays are (B, T): B completions of at most T tokens, a column a token. The steps of a completion
are the tokens where its `mask` is 1, those that the policy chose; a tool's words among them are none.
A state's value belongs to the token that is chosen in it.
"""

import math

import numpy as np

EPSILON = 1e-8  # TRL's, and that of the N+ details, under the root of the variance


def steps(mask: np.ndarray) -> list[list[int]]:
    """The columns of each completion's tokens, in order."""
    return [[t for t in range(mask.shape[1]) if row[t]] for row in mask]


def chosen(x: np.ndarray, mask: np.ndarray) -> list[float]:
    """All real tokens' numbers in one list."""
    return [float(x[b, t]) for b, columns in enumerate(steps(mask)) for t in columns]


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def variance(numbers: list[float]) -> float:
    """The unbiased variance: the divisor is one less than the count."""
    centre = mean(numbers)
    return math.fsum((number - centre) ** 2 for number in numbers) / (len(numbers) - 1)


def per_token_kl(logprobs: np.ndarray, ref_logprobs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The log ratio of policy to reference at each sampled token, whose mean is the KL (`k1`)."""
    out = np.zeros(mask.shape)
    for b, columns in enumerate(steps(mask)):
        for t in columns:
            out[b, t] = logprobs[b, t] - ref_logprobs[b, t]
    return out


def token_rewards(scores: np.ndarray, kl: np.ndarray, mask: np.ndarray, beta: float) -> np.ndarray:
    """A completion's score where it ends, and the price of leaving the reference at every token."""
    out = np.zeros(mask.shape)
    for b, columns in enumerate(steps(mask)):
        for t in columns:
            out[b, t] = -beta * kl[b, t]
        if columns:
            out[b, columns[-1]] += scores[b]
    return out


def gae(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages as the sum of discounted deltas, equation 16, and returns for the value model."""
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for b, columns in enumerate(steps(mask)):
        reward = [rewards[b, t] for t in columns]
        value = [values[b, t] for t in columns] + [0.0]  # nothing follows the last token
        delta = [reward[i] + gamma * value[i + 1] - value[i] for i in range(len(columns))]
        for i, t in enumerate(columns):
            terms = [(gamma * lam) ** ahead * d for ahead, d in enumerate(delta[i:])]
            advantages[b, t] = math.fsum(terms)
            returns[b, t] = advantages[b, t] + values[b, t]
    return advantages, returns


def gae_of_n_step_estimates(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """The same advantages by their definition, the lambda-weighted mean of n-step estimates.

    A^(n) = r_t + ... + gamma^(n-1) r_(t+n-1) + gamma^n V(t+n) - V(t), equation 14. All estimates that
    reach the end are equal, so the last one has all the weight that is left, lambda^(N-1).
    """
    advantages = np.zeros(mask.shape)
    for b, columns in enumerate(steps(mask)):
        reward = [rewards[b, t] for t in columns]
        value = [values[b, t] for t in columns] + [0.0]
        for i, t in enumerate(columns):
            left = len(columns) - i
            for n in range(1, left + 1):
                gained = math.fsum(gamma**j * reward[i + j] for j in range(n))
                estimate = gained + gamma**n * value[i + n] - value[i]
                weight = (1 - lam) * lam ** (n - 1) if n < left else lam ** (n - 1)
                advantages[b, t] += weight * estimate
    return advantages


def whiten(advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean 0 and unbiased variance 1 over all real tokens; 0 elsewhere."""
    real = chosen(advantages, mask)
    centre, spread = mean(real), math.sqrt(variance(real) + EPSILON)
    out = np.zeros(mask.shape)
    for b, columns in enumerate(steps(mask)):
        for t in columns:
            out[b, t] = (advantages[b, t] - centre) / spread
    return out


def policy_loss(
    logprobs: np.ndarray,
    old_logprobs: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    epsilon: float,
) -> tuple[float, float]:
    """PPO's clipped loss, the mean over real tokens, and the share of tokens where the clip counts."""
    losses, clipped = [], []
    for b, columns in enumerate(steps(mask)):
        for t in columns:
            ratio = math.exp(logprobs[b, t] - old_logprobs[b, t])
            near = min(max(ratio, 1 - epsilon), 1 + epsilon)
            free, held = ratio * advantages[b, t], near * advantages[b, t]
            losses.append(-min(free, held))
            clipped.append(float(held < free))
    return mean(losses), mean(clipped)


def value_loss(
    values: np.ndarray,
    old_values: np.ndarray,
    returns: np.ndarray,
    mask: np.ndarray,
    cliprange_value: float,
) -> tuple[float, float]:
    """Half the mean of the larger squared error, of the value and of the clipped value; clip share."""
    losses, clipped = [], []
    for b, columns in enumerate(steps(mask)):
        for t in columns:
            low, high = old_values[b, t] - cliprange_value, old_values[b, t] + cliprange_value
            free = (values[b, t] - returns[b, t]) ** 2
            held = (min(max(values[b, t], low), high) - returns[b, t]) ** 2
            losses.append(0.5 * max(free, held))
            clipped.append(float(held > free))
    return mean(losses), mean(clipped)


def entropy(logits: np.ndarray, mask: np.ndarray) -> float:
    """Mean over real tokens of -sum p ln p, in nats; `logits` are (B, T, V)."""
    found = []
    for b, columns in enumerate(steps(mask)):
        for t in columns:
            top = max(logits[b, t])
            weights = [math.exp(logit - top) for logit in logits[b, t]]
            shares = [weight / math.fsum(weights) for weight in weights]
            found.append(-math.fsum(p * math.log(p) for p in shares if p > 0))
    return mean(found)


def explained_variance(values: np.ndarray, returns: np.ndarray, mask: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is perfect, 0 no better than a constant."""
    return 1 - variance(chosen(returns - values, mask)) / variance(chosen(returns, mask))
