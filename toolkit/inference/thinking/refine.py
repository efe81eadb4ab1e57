"""Draft, critique, revise: an answer is looked at and written again as long as it gets better."""

from collections.abc import Generator
from typing import Any

from toolkit.errors import RecipeError
from toolkit.inference.engine import Completion
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.steps import (
    Judge,
    Messages,
    Problem,
    Step,
    Thinking,
    chosen,
    draw,
    write,
)

CRITIQUE = "Check your answer step by step. What, if anything, is wrong with it?"
REVISE = "Answer the question again, with what you found put right."


def refine(
    problem: Problem,
    budget: Budget,
    *,
    rounds: int = 3,
    critique: str = CRITIQUE,
    revise: str = REVISE,
) -> Thinking:
    """Draft an answer; criticise and revise it, and keep the better of the two by the judge.

    It ends with the first revision that scores no higher, for a verifier also with a full score
    that cannot be raised.

    Args:
        problem: the question, a conversation.
        budget: what it may cost.
        rounds: how many revisions at most.
        critique: the words that ask for a critique.
        revise: the words that ask for a revision.

    Raises:
        RecipeError: if the question is a document, in which nobody can be asked anything more.

    Source:
        Madaan et al. 2023, "Self-Refine: Iterative Refinement with Self-Feedback", arXiv:2303.17651,
        where the model itself says when to stop; that a judge from outside is needed: Huang et al.
        2023, "Large Language Models Cannot Self-Correct Reasoning Yet", arXiv:2310.01798.
    """
    if problem.messages is None or problem.render is None:
        raise RecipeError("refine asks back, which takes a model with a chat template")
    written = yield from draw(problem, budget, 1)
    if not written:
        return chosen(problem, budget, None, written)
    best = written[0]
    (score,) = yield Judge([best])
    for turn in range(rounds):
        said = [*problem.messages, {"role": "assistant", "content": best.text}]
        thought = yield from say(problem, budget, [*said, user(critique)], 2 * turn + 1)
        if thought is None:
            break
        written.append(thought)
        said += [user(critique), {"role": "assistant", "content": thought.text}, user(revise)]
        revision = yield from say(problem, budget, said, 2 * turn + 2)
        if revision is None:
            break
        written.append(revision)
        (raised,) = yield Judge([revision])
        if raised is None or (score is not None and raised <= score):
            break
        best, score = revision, raised
    return chosen(problem, budget, best, written, score=score)


def user(words: str) -> dict[str, str]:
    """A turn of the user."""
    return {"role": "user", "content": words}


def say(
    problem: Problem, budget: Budget, messages: Messages, place: int
) -> Generator[Step, Any, Completion | None]:
    """The next turn of a conversation; None if the budget has nothing left for it."""
    if not budget.left:
        return None
    assert problem.render is not None
    (made,) = yield from write(problem, budget, [place], input_ids=problem.render(messages))
    return made if made.input_ids else None
