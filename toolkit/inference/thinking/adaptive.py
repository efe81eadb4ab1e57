"""As many samples as a question needs: sampling ends when the vote is decided."""

from collections.abc import Generator, Mapping
from functools import lru_cache
from math import comb, exp, lgamma
from typing import Any

from toolkit.errors import RecipeError
from toolkit.inference.engine import Completion, Sampling
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.steps import Likelihood, Problem, Step, Thinking, draw
from toolkit.inference.thinking.tally import leader, tally
from toolkit.inference.thinking.vote import elected, voices

PRIOR = 0.5
"""What each kind of answer counts before it is given: Jeffreys' prior."""


def adaptive(
    problem: Problem,
    budget: Budget,
    *,
    confidence: float = 0.95,
    n: int = 16,
    likelihood: bool = False,
) -> Thinking:
    """Sample one by one, until the answer that leads would also win the vote of all `n` samples.

    Of the votes alone, one sample decides nothing: there is no telling an easy question from a lucky
    guess. With `likelihood` it can: an answer that the model gives with a probability above a half
    is its majority, and that is known of what it wrote.

    Args:
        problem: the question.
        budget: what it may cost.
        confidence: how likely that has to be, in (0, 1]; see `stands` and `holds`. At 1 only what
            cannot be overtaken is decided.
        n: how many samples at most.
        likelihood: whether the model is also asked how probable its samples are, at the cost of
            reading each once more; the sampling has to be the model's own, at temperature 1.

    Raises:
        RecipeError: if likelihood goes with another sampling.

    Source:
        Aggarwal et al. 2023, "Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning
        and Coding with LLMs", arXiv:2305.11860. Theirs stops when the leader is likely to be the
        model's majority; this one when it is likely to win the vote that is spared, which takes
        fewer samples and is what the confidence is checked against.
    """
    sampling = problem.sampling
    if likelihood and sampling != Sampling(sampling.max_completion_length):
        raise RecipeError("adaptive: likelihood goes with temperature 1, top_p 1 and top_k 0 only")
    samples: list[Completion] = []
    known: dict[str, dict[tuple[int, ...], float]] = {}
    sure = 0.0
    while len(samples) < n and sure < confidence:
        more = yield from draw(problem, budget, 1, first=len(samples))
        if not more:
            break
        samples += more
        if likelihood:
            yield from weigh(problem, more[0], known)
        sure = decided(tally(voices(problem, samples)), known, len(samples), n)
    return elected(problem, budget, samples, confidence=sure)


def weigh(
    problem: Problem, sample: Completion, known: dict[str, dict[tuple[int, ...], float]]
) -> Generator[Step, Any, None]:
    """Note how probable a sample is, beside the others that say the same; each text counts once."""
    (said,) = voices(problem, [sample])
    if said is not None and tuple(sample.input_ids) not in known.get(said, {}):
        (logs,) = yield Likelihood(problem.prompt, [sample])
        known.setdefault(said, {})[tuple(sample.input_ids)] = exp(sum(logs))


def decided(
    votes: dict[str, float],
    known: Mapping[str, Mapping[tuple[int, ...], float]],
    drawn: int,
    n: int,
) -> float:
    """How likely the answer that leads would win the vote of all samples.

    Args:
        votes: of each answer.
        known: of each answer the probability of every text that was seen to give it.
        drawn: how many samples there are.
        n: how many there would be.
    """
    first, second = (int(each) for each in (*sorted(votes.values(), reverse=True), 0, 0)[:2])
    left = n - drawn
    by_votes = stands(first, second, drawn - first - second, left)
    if drawn == 1 < n:
        by_votes = 0.0
    best = leader(votes)
    share = min(1.0, sum(known.get(best or "", {}).values()))
    return max(by_votes, holds(first, drawn - first, left, share))


def holds(first: int, others: int, left: int, share: float) -> float:
    """How likely an answer wins more than half of all samples, at least.

    Args:
        first: its votes.
        others: samples that do not say it.
        left: samples that are still to be drawn.
        share: how probable it is at least to be sampled.
    """
    chances = (
        comb(left, more) * share**more * (1 - share) ** (left - more)
        for more in range(left + 1)
        if 2 * (first + more) > first + others + left
    )
    return min(1.0, sum(chances))


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
