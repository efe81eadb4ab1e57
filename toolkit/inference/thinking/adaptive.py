"""As many samples as a question needs: sampling ends when the vote is decided."""

from functools import lru_cache
from math import exp, lgamma

from toolkit.inference.engine import Completion
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.steps import Problem, Thinking, draw
from toolkit.inference.thinking.tally import tally
from toolkit.inference.thinking.vote import elected, voices

PRIOR = 0.5
"""What each kind of answer counts before it is given: Jeffreys' prior."""


def adaptive(
    problem: Problem, budget: Budget, *, confidence: float = 0.95, n: int = 16
) -> Thinking:
    """Sample one by one, until the answer that leads would also win the vote of all `n` samples.

    Args:
        problem: the question.
        budget: what it may cost.
        confidence: how likely that has to be, in (0, 1]; see `stands`. At 1 only what cannot be
            overtaken is decided.
        n: how many samples at most.

    Source:
        Aggarwal et al. 2023, "Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning
        and Coding with LLMs", arXiv:2305.11860. Theirs stops when the leader is likely to be the
        model's majority; this one when it is likely to win the vote that is spared, which takes
        fewer samples and is what the confidence is checked against.
    """
    samples: list[Completion] = []
    sure = 0.0
    while len(samples) < n:
        more = yield from draw(problem, budget, 1, first=len(samples))
        samples += more
        counts = sorted(tally(voices(problem, samples)).values(), reverse=True)
        first, second = (int(each) for each in (*counts, 0, 0)[:2])
        others = len(samples) - first - second
        sure = stands(first, second, others, n - len(samples))
        if not more or sure >= confidence:
            break
    return elected(problem, budget, samples, confidence=sure)


@lru_cache(maxsize=100_000)
def stands(first: int, second: int, others: int, left: int) -> float:
    """How likely the leading answer is still to lead when all samples are drawn.

    The samples that are left fall to the leader, to the second, or to anything else, as a
    Dirichlet-multinomial distribution with Jeffreys' prior has it after what was seen. A tie counts
    half. That a third answer overtakes both is not reckoned with.

    Args:
        first: votes of the leading answer.
        second: votes of the next one.
        others: samples that say anything else, or nothing.
        left: samples that are still to be drawn.
    """
    if not first:
        return 0.0
    if first - second > left:
        return 1.0
    seen = [first + PRIOR, second + PRIOR, others + PRIOR]
    found = 0.0
    for to_first in range(left + 1):
        for to_second in range(left - to_first + 1):
            lead = first + to_first - second - to_second
            if lead >= 0:
                fallen = (to_first, to_second, left - to_first - to_second)
                found += (0.5 if lead == 0 else 1.0) * exp(log_chance(seen, fallen))
    return min(1.0, found)


def log_chance(seen: list[float], fallen: tuple[int, ...]) -> float:
    """The logarithm of the Dirichlet-multinomial probability that draws fall so.

    Args:
        seen: the parameters of the Dirichlet distribution.
        fallen: draws of each kind.
    """
    whole, drawn = sum(seen), sum(fallen)
    log = lgamma(drawn + 1) + lgamma(whole) - lgamma(whole + drawn)
    for parameter, count in zip(seen, fallen, strict=True):
        log += lgamma(parameter + count) - lgamma(parameter) - lgamma(count + 1)
    return log
