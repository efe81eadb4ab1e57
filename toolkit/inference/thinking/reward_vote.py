"""A vote in which a sample counts as much as its reward says: best-of-N and the vote in one."""

from collections.abc import Sequence
from math import exp

from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.steps import Judge, Problem, Thinking, draw
from toolkit.inference.thinking.vote import elected


def reward_vote(problem: Problem, budget: Budget, *, n: int = 16, scale: float = 1.0) -> Thinking:
    """Sample, and take the answer whose samples have the most reward between them.

    The verifiers of the sources give probabilities, which are summed as they are. A reward model
    learnt from preferences gives numbers that are known up to a constant only, so a sample's weight
    is its share of a softmax.

    Args:
        problem: the question.
        budget: what it may cost.
        n: how many samples.
        scale: what the rewards are divided by; a large one makes this a plain vote, a small one
            best-of-N.

    Source:
        Li et al. 2022, "Making Large Language Models Better Reasoners with Step-Aware Verifier",
        arXiv:2206.02336; the weighted best-of-N of Beeching et al. 2024, "Scaling test-time compute
        with open models" (search-and-learn).
    """
    samples = yield from draw(problem, budget, n)
    scores: list[float | None] = []
    if samples:
        scores = yield Judge(samples)
    return elected(problem, budget, samples, weights(scores, scale))


def weights(scores: Sequence[float | None], scale: float) -> list[float]:
    """What each sample counts, at most 1; one without a score counts nothing."""
    most = max((score for score in scores if score is not None), default=0.0)
    return [0.0 if score is None else exp((score - most) / scale) for score in scores]
