"""What a way of thinking is made of: a question, what is asked of an engine, and the answer."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.inference.engine import Completion, Prompt, Sampling
from toolkit.inference.thinking.budget import Budget

Messages = Sequence[Mapping[str, Any]]


def own_seeds(seed: int, index: int) -> int:
    """The seed of a question's completion: its own for every seed and index."""
    return int(sha256(f"{seed}/{index}".encode()).hexdigest()[:13], 16)


@dataclass(frozen=True)
class Problem:
    """A question that is thought about.

    Attributes:
        prompt: its tokens, seed, stop strings and adapter.
        sampling: how completions are written; `max_completion_length` is each one's limit.
        said: the answer that is read in a text; None where there is none.
        tokenizer: the engine's.
        messages: the conversation that the prompt renders; None for a document.
        render: the tokens of a conversation that goes on.
        seed_of: the seed of the completion at a position, from the prompt's seed.
    """

    prompt: Prompt
    sampling: Sampling
    said: Callable[[str], str | None]
    tokenizer: PreTrainedTokenizerBase | None = None
    messages: Messages | None = None
    render: Callable[[Messages], list[int]] | None = None
    seed_of: Callable[[int, int], int] = own_seeds


@dataclass(frozen=True)
class Write:
    """Have prompts completed; answered with a completion for each."""

    prompts: list[Prompt]
    sampling: Sampling


@dataclass(frozen=True)
class Likelihood:
    """Have a model say how likely completions are; answered with the log-probabilities of each."""

    prompt: Prompt
    completions: list[Completion]


@dataclass(frozen=True)
class Judge:
    """Have completions of a question judged; answered with the score of each, None for none."""

    completions: list[Completion]


@dataclass(frozen=True)
class Thought:
    """What thinking came to.

    Attributes:
        text: the answer.
        said: what is read in it; None if nothing is.
        stopped: whether it ended by itself.
        tokens: what all of it cost.
        completions: everything that was written for it, in order.
        votes: for each answer how much spoke for it, where there was a vote.
        score: the judge's, of the answer that was chosen.
        confidence: how sure a vote that ended early is to stand.
    """

    text: str
    said: str | None
    stopped: bool
    tokens: int
    completions: tuple[Completion, ...] = ()
    votes: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    confidence: float | None = None


Step = Write | Likelihood | Judge
Thinking = Generator[Step, Any, Thought]
"""A way of thinking on its way."""


def write(
    problem: Problem, budget: Budget, places: Sequence[int], **changed: Any
) -> Generator[Step, Any, list[Completion]]:
    """Have the question completed within the budget, whose tokens the completions may use up.

    Args:
        problem: the question.
        budget: has room for so many.
        places: the positions of the completions among all of the question, which give the seeds.
        **changed: of the prompt.
    """
    budget.start()
    prompt, sampling = problem.prompt, problem.sampling
    limit = min(sampling.max_completion_length, budget.left)
    own = {"max_tokens": limit, "deadline": budget.deadline, **changed}
    seeds = [problem.seed_of(prompt.seed, place) for place in places]
    made: list[Completion] = yield Write([replace(prompt, seed=s, **own) for s in seeds], sampling)
    budget.spend(sum(len(each.input_ids) for each in made))
    return made


def draw(
    problem: Problem, budget: Budget, n: int, first: int = 0
) -> Generator[Step, Any, list[Completion]]:
    """Sample a question some times, as often as the budget allows.

    Args:
        problem: the question.
        budget: what it may cost.
        n: how often at most.
        first: the position of the first sample, which gives it its seed.

    Returns:
        The samples in their order; the last may have been cut off by the budget.
    """
    found: list[Completion] = []
    longest = problem.sampling.max_completion_length
    while len(found) < n and (room := budget.fits(longest)):
        places = range(first + len(found), first + min(n, len(found) + room))
        made = yield from write(problem, budget, places)
        begun = [each for each in made if each.input_ids]
        found += begun
        if len(begun) < len(made):  # the time was over before some began
            break
    return found


def chosen(
    problem: Problem,
    budget: Budget,
    completion: Completion | None,
    completions: Sequence[Completion],
    **known: Any,
) -> Thought:
    """A thought whose answer is one of its completions; None where nothing was written."""
    text = completion.text if completion else ""
    stopped = completion.stopped if completion else False
    said = problem.said(text) if completion else None
    return Thought(text, said, stopped, budget.spent, tuple(completions), **known)
