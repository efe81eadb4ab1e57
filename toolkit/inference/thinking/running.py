"""Thinking carried out: many questions side by side over an engine, or one over what is there."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from toolkit.errors import RecipeError
from toolkit.inference.engine import Completion, Engine, Prompt
from toolkit.inference.thinking.steps import (
    Judge,
    Likelihood,
    Problem,
    Step,
    Thinking,
    Thought,
    Write,
)

Judged = Callable[[Sequence[tuple[Problem, Completion]]], Sequence[float | None]]
"""Gives the score of each completion of a question."""


def think(
    engine: Engine, thinkings: Sequence[tuple[Problem, Thinking]], judge: Judged | None = None
) -> list[Thought]:
    """Carry ways of thinking out side by side: what all of them want written goes into one batch.

    Args:
        engine: writes.
        thinkings: a question, and the way of thinking about it that has begun. Where budgets have
            seconds, one at a time: the time of all of them runs at once.
        judge: scores; needed where one of them wants something judged.

    Returns:
        What each came to.

    Raises:
        RecipeError: if there is no judge and one is needed; and what the engine raises.
    """
    found: dict[int, Thought] = {}
    wanted = {
        place: step
        for place, (_, way) in enumerate(thinkings)
        if (step := advanced(way, None, found, place)) is not None
    }
    while wanted:
        answers = carried_out(engine, wanted, [problem for problem, _ in thinkings], judge)
        wanted = {
            place: step
            for place, answer in answers.items()
            if (step := advanced(thinkings[place][1], answer, found, place)) is not None
        }
    return [found[place] for place in range(len(thinkings))]


def advanced(way: Thinking, answer: Any, found: dict[int, Thought], place: int) -> Step | None:
    """What is wanted next; None when it has come to an end, which is then found."""
    try:
        return way.send(answer)
    except StopIteration as end:
        found[place] = end.value
        return None


def carried_out(
    engine: Engine, wanted: dict[int, Step], problems: Sequence[Problem], judge: Judged | None
) -> dict[int, Any]:
    """The answer to every step, those of one kind together."""
    answers: dict[int, Any] = {}
    writes = {place: step for place, step in wanted.items() if isinstance(step, Write)}
    for sampling in dict.fromkeys(step.sampling for step in writes.values()):
        same = {place: step for place, step in writes.items() if step.sampling == sampling}
        flat = [(place, prompt) for place, step in same.items() for prompt in step.prompts]
        made = dict(engine.generate([prompt for _, prompt in flat], sampling))
        for index, (place, _) in enumerate(flat):
            answers.setdefault(place, []).append(made[index])
    likely = {place: step for place, step in wanted.items() if isinstance(step, Likelihood)}
    if likely:
        pairs = [(place, step, each) for place, step in likely.items() for each in step.completions]
        rows = [each.input_ids for _, _, each in pairs]
        logs = engine.log_probabilities([step.prompt for _, step, _ in pairs], rows)
        for (place, _, _), row in zip(pairs, logs, strict=True):
            answers.setdefault(place, []).append(row)
    judged = {place: step for place, step in wanted.items() if isinstance(step, Judge)}
    if judged:
        if judge is None:
            raise RecipeError("this way of thinking needs a reward that judges; name one")
        flat_judged = [(place, each) for place, step in judged.items() for each in step.completions]
        scores = judge([(problems[place], each) for place, each in flat_judged])
        for (place, _), score in zip(flat_judged, scores, strict=True):
            answers.setdefault(place, []).append(score)
    return answers


def replay(
    thinking: Thinking, samples: Sequence[Completion], scores: Iterable[float | None] = ()
) -> Thought:
    """Carry a way of thinking out over samples that are there, in their order, without a model.

    Args:
        thinking: draws samples, no more than there are, and has them judged.
        samples: of the question.
        scores: of each, where they are judged.

    Raises:
        ValueError: if it wants what was never written.
    """
    scored = list(scores)
    used = 0
    found: dict[int, Thought] = {}
    step = advanced(thinking, None, found, 0)
    while step is not None:
        if isinstance(step, Write) and used + len(step.prompts) <= len(samples):
            pairs = zip(step.prompts, samples[used:], strict=False)
            answer: Any = [shortened(prompt, sample) for prompt, sample in pairs]
            used += len(step.prompts)
        elif isinstance(step, Judge) and len(scored) >= used == len(step.completions):
            answer = scored[:used]
        else:
            raise ValueError(f"{type(step).__name__} cannot be had from {len(samples)} samples")
        step = advanced(thinking, answer, found, 0)
    return found[0]


def shortened(prompt: Prompt, sample: Completion) -> Completion:
    """A sample as it would be had it met the limit of its prompt; cut off, it says nothing."""
    if prompt.max_tokens is None or len(sample.input_ids) <= prompt.max_tokens:
        return sample
    return replace(sample, text="", input_ids=sample.input_ids[: prompt.max_tokens], stopped=False)
