"""Best-of-N: the sample that a reward scores highest."""

from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.steps import Judge, Problem, Thinking, chosen, draw
from toolkit.inference.thinking.tally import highest


def best_of(problem: Problem, budget: Budget, *, n: int = 16) -> Thinking:
    """Sample, and take what the judge scores highest; the first of equal scores.

    Args:
        problem: the question.
        budget: what it may cost.
        n: how many samples.

    Source:
        Stiennon et al. 2020, "Learning to summarize from human feedback", arXiv:2009.01325; Cobbe et
        al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv:2110.14168.
    """
    samples = yield from draw(problem, budget, n)
    scores: list[float | None] = []
    if samples:
        scores = yield Judge(samples)
    place = highest(scores)
    answer, score = (None, None) if place is None else (samples[place], scores[place])
    return chosen(problem, budget, answer, samples, score=score)
