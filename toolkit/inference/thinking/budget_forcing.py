"""Budget forcing: thinking is made to go on until a minimum, and made to end at a maximum."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from toolkit.errors import RecipeError
from toolkit.inference.engine import Completion
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.steps import Problem, Step, Thinking, Thought, write


def budget_forcing(
    problem: Problem,
    budget: Budget,
    *,
    end: str,
    minimum: int = 0,
    maximum: int = 1024,
    wait: str = "\nWait",
) -> Thinking:
    """Let a model think for so many tokens at least and at most, then answer.

    Where it would end its thinking too early, `wait` stands instead of the end, and it goes on; at
    the maximum `end` is put into its mouth, and it answers.

    Args:
        problem: the question.
        budget: what it may cost; what is put into the model's mouth is paid for too.
        end: what ends thinking and begins the answer, such as "</think>" or "The answer is".
        minimum: tokens of thinking at least, as far as the budget goes.
        maximum: tokens of thinking at most, `wait` included.
        wait: what is put in place of an early end.

    Raises:
        RecipeError: if nothing can be put into the model's mouth, or minimum is above maximum.

    Source:
        Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393.
    """
    if problem.tokenizer is None or not end or not wait or minimum > maximum:
        raise RecipeError(
            "budget_forcing: expected end and wait, and a minimum up to the maximum, found "
            f"end {end!r}, wait {wait!r}, {minimum} and {maximum}"
        )
    ids: list[int] = []
    written: list[Completion] = []
    has_ended = is_answered = False
    while not has_ended and (room := min(maximum - len(ids), budget.left)) > 0:
        made = yield from go_on(problem, budget, ids, len(written), room, end)
        written.append(made)
        thought_of, more = thoughts(problem, made, end), encoded(problem, wait)
        thinking = len(ids) + len(thought_of)
        if not made.stopped:
            ids += thought_of
            break
        if thinking < minimum and len(more) < min(maximum - thinking, budget.left):
            budget.spend(len(more))
            ids += [*thought_of, *more]
        else:
            ids += made.input_ids
            has_ended = True
            is_answered = end not in decoded(problem, made.input_ids)  # a stop token ended it
    forced = [] if has_ended else encoded(problem, end)
    if is_answered or len(forced) >= budget.left:
        return thought(problem, budget, ids, is_answered, written)
    budget.spend(len(forced))
    ids += forced
    longest = problem.sampling.max_completion_length
    answer = yield from go_on(problem, budget, ids, len(written), longest, None)
    written.append(answer)
    return thought(problem, budget, [*ids, *answer.input_ids], answer.stopped, written)


def go_on(
    problem: Problem, budget: Budget, ids: list[int], place: int, longest: int, end: str | None
) -> Generator[Step, Any, Completion]:
    """What a model writes behind what is there; see `budget_forcing`."""
    prompt = problem.prompt
    sampling = replace(problem.sampling, max_completion_length=longest)
    (made,) = yield from write(
        replace(problem, sampling=sampling), budget, [place],
        input_ids=[*prompt.input_ids, *ids],
        stop_strings=(*prompt.stop_strings, end) if end else prompt.stop_strings,
    )  # fmt: skip
    return made


def thoughts(problem: Problem, made: Completion, end: str) -> list[int]:
    """The tokens of a completion without its stop token, and without the end and what it is in."""
    ids = list(made.input_ids)
    while ids and len(decoded(problem, ids)) > len(made.text):
        ids.pop()
    if made.stopped and ids == made.input_ids and end not in decoded(problem, ids):
        ids.pop()  # a stop token, which decodes to nothing
    return ids


def decoded(problem: Problem, ids: list[int]) -> str:
    """The text of tokens, without special ones."""
    assert problem.tokenizer is not None
    return str(problem.tokenizer.decode(ids, skip_special_tokens=True))


def encoded(problem: Problem, text: str) -> list[int]:
    """The tokens of a text, with nothing put before or behind it."""
    assert problem.tokenizer is not None
    return list(problem.tokenizer(text, add_special_tokens=False).input_ids)


def thought(
    problem: Problem, budget: Budget, ids: list[int], stopped: bool, written: list[Completion]
) -> Thought:
    """What it came to: the thinking and the answer, up to the first stop string of the prompt."""
    text = decoded(problem, ids)
    cuts = [text.index(stop) for stop in problem.prompt.stop_strings if stop in text]
    text = text[: min(cuts)] if cuts else text
    return Thought(text, problem.said(text), stopped, budget.spent, tuple(written))
