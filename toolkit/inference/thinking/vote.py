"""Self-consistency: the answer that most samples give, or that the likeliest samples give."""

from collections.abc import Iterable, Sequence
from math import exp
from statistics import fmean

from toolkit.inference.engine import Completion
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.steps import Likelihood, Problem, Thinking, Thought, chosen, draw
from toolkit.inference.thinking.tally import leader, tally


def vote(problem: Problem, budget: Budget, *, n: int = 16) -> Thinking:
    """Sample, and take the answer that was given most often, however it is worded.

    A sample that did not end by itself, or in which no answer is read, does not vote.

    Args:
        problem: the question.
        budget: what it may cost.
        n: how many samples.

    Source:
        Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
        arXiv:2203.11171.
    """
    samples = yield from draw(problem, budget, n)
    return elected(problem, budget, samples)


def weighted_vote(problem: Problem, budget: Budget, *, n: int = 16) -> Thinking:
    """As `vote`, each sample with its likelihood: the geometric mean of its tokens' probabilities.

    Args:
        problem: the question.
        budget: what it may cost.
        n: how many samples.

    Source:
        The "weighted sum (normalized)" of Wang et al. 2022, arXiv:2203.11171, section 3.1.
    """
    samples = yield from draw(problem, budget, n)
    logs: list[list[float]] = []
    if samples:
        logs = yield Likelihood(problem.prompt, samples)
    return elected(problem, budget, samples, [exp(fmean(each)) for each in logs])


def voices(problem: Problem, samples: Sequence[Completion]) -> list[str | None]:
    """What each sample votes for; None for one that does not vote."""
    return [problem.said(each.text) if each.stopped else None for each in samples]


def elected(
    problem: Problem,
    budget: Budget,
    samples: Sequence[Completion],
    weights: Iterable[float] | None = None,
    confidence: float | None = None,
) -> Thought:
    """The first sample that gives the answer with the most votes; the first of all without votes."""
    said = voices(problem, samples)
    votes = tally(said, weights)
    winner = leader(votes)
    place = said.index(winner) if winner is not None else 0
    answer = samples[place] if samples else None
    return chosen(problem, budget, answer, samples, votes=votes, confidence=confidence)
