"""The test-time scaling curve: accuracy against tokens spent, from an exam's samples.

The ways of thinking that only draw samples, judge them and vote are carried out over the samples
that are there, so the curve costs no more than reading them.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from toolkit.evaluation.graded import Graded, Key
from toolkit.evaluation.intervals import wilson
from toolkit.inference.engine import Completion, Prompt, Sampling
from toolkit.inference.thinking.methods import Method
from toolkit.inference.thinking.running import replay
from toolkit.inference.thinking.steps import Problem, Thought

CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
"""Of adaptive sampling, each a point of its curve."""

Questions = Sequence[Sequence[Graded]]
Scores = Mapping[Key, float | None]


def scaling_points(
    questions: Questions, scores: Mapping[str, Scores] | None = None
) -> list[dict[str, Any]]:
    """The points of the curves of one model and task.

    Args:
        questions: the samples of each question, in their order.
        scores: of each reward, every sample's score.

    Returns:
        One mapping per point: `method`, `reward` (None without one), `setting` (its parameters),
        `tokens` and `samples` (means per question), `accuracy` and its 95 % interval, `low` to
        `high`.
    """
    return [
        {"method": method.name, "reward": reward, "setting": dict(method.parameters)}
        | point(questions, method, (scores or {}).get(reward or "", {}))
        for method, reward in methods_of(min(map(len, questions)), scores or {})
    ]


def methods_of(n: int, scores: Mapping[str, Scores]) -> Iterator[tuple[Method, str | None]]:
    """Every way of thinking that so many samples allow, with the reward that judges."""
    sizes = sizes_of(n)
    yield from ((Method("vote", {"n": size}), None) for size in sizes)
    yield from (
        (Method("adaptive", {"confidence": confidence, "n": n}), None)
        for confidence in CONFIDENCES
        if n > 2
    )
    for name in ("best_of", "reward_vote"):
        for reward in scores:  # of one sample there is nothing to choose
            yield from ((Method(name, {"n": size}), reward) for size in sizes if size > 1)


def sizes_of(n: int) -> list[int]:
    """The powers of two below a number of samples, and the number."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


def point(questions: Questions, method: Method, scores: Scores) -> dict[str, Any]:
    """What a way of thinking costs and achieves over the questions of a task."""
    thoughts = [thought_over(samples, method, scores) for samples in questions]
    right = sum(
        is_right(thought, samples) for thought, samples in zip(thoughts, questions, strict=True)
    )
    low, high = wilson(right, len(questions))
    return {
        "tokens": fmean(thought.tokens for thought in thoughts),
        "samples": fmean(len(thought.completions) for thought in thoughts),
        "accuracy": right / len(questions),
        "low": low,
        "high": high,
    }


def thought_over(samples: Sequence[Graded], method: Method, scores: Scores) -> Thought:
    """What a way of thinking makes of the samples of a question."""
    said = {each.text: each.said for each in samples}
    lengths = [max(1, each.tokens) for each in samples]
    problem = Problem(Prompt([]), Sampling(max(lengths)), lambda text: said.get(text))
    completions = [
        Completion(each.text, [0] * length, each.stopped)
        for each, length in zip(samples, lengths, strict=True)
    ]
    return replay(method.begin(problem), completions, [scores.get(each.key) for each in samples])


def is_right(thought: Thought, samples: Sequence[Graded]) -> bool:
    """Whether the answer is right and ended: two samples of the same words are graded alike."""
    return thought.stopped and any(
        each.right for each in samples if each.stopped and each.text == thought.text
    )


def agreement(questions: Questions, confidence: float) -> float:
    """How often stopping at a confidence gives what the vote of all samples gives.

    Args:
        questions: the samples of each.
        confidence: as of `adaptive`; a rule that is honest agrees at least so often.
    """
    same = 0
    for samples in questions:
        n = {"n": len(samples)}
        early = thought_over(samples, Method("adaptive", n | {"confidence": confidence}), {})
        same += early.said == thought_over(samples, Method("vote", n), {}).said
    return same / len(questions)
