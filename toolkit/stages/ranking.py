"""From scored answers to ranks, and what became of every answer and prompt on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.evaluation.graded import Key
from toolkit.stages.scored import Answer


@dataclass
class Counts:
    """What became of the answers and of the prompts.

    Attributes:
        prompts: all of them.
        ranked: prompts that are written, with two answers or more.
        answers: all that were sampled.
        written: answers that are written.
        unstopped: left out because they were cut off: none must be learnt as if it ended there.
        repeated: merged with an answer of the same words to the same prompt.
        unscored: left out because a reward gave none.
        alone: prompts left out because fewer than two different answers remain.
        tied: prompts left out because all their answers have one score.
    """

    prompts: int = 0
    ranked: int = 0
    answers: int = 0
    written: int = 0
    unstopped: int = 0
    repeated: int = 0
    unscored: int = 0
    alone: int = 0
    tied: int = 0

    def lines(self) -> list[str]:
        """For a person."""
        found = [
            f"{self.ranked:,} of {self.prompts:,} prompts ranked, with {self.written:,} of "
            f"{self.answers:,} answers"
        ]
        left_out = [
            (self.repeated, "answers merged with one of the same words"),
            (self.unstopped, "answers left out: cut off at max_completion_length"),
            (self.unscored, "answers left out: a reward gave no score"),
            (self.alone, "prompts left out: fewer than two different answers"),
            (self.tied, "prompts left out: all answers have the same score"),
        ]
        return found + [f"{count:,} {what}" for count, what in left_out if count]


@dataclass
class Scored:
    """The answers to one prompt, with their scores."""

    first: Answer
    answers: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def ranking(
    answers: Sequence[Answer], scores: Mapping[str, Mapping[Key, float | None]], counts: Counts
) -> list[dict[str, Any]]:
    """The rows of `ranked.jsonl`: the best answer has rank 1, equal scores have equal ranks.

    An answer's score is the sum of its scores by every reward.
    """
    lists: dict[int, Scored] = {}
    for each in answers:
        parts = [of_one[each.key] for of_one in scores.values()]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            counts.unscored += 1
            continue
        ranked = lists.setdefault(each.key[2], Scored(each))
        ranked.answers.append(each.text)
        ranked.scores.append(sum(known))
    found: list[dict[str, Any]] = []
    for ranked in lists.values():
        order = sorted(set(ranked.scores), reverse=True)
        if len(order) < 2:
            counts.tied += len(ranked.answers) > 1
            continue
        counts.written += len(ranked.answers)
        row = {
            "prompt": ranked.first.prompt,
            "answers": ranked.answers,
            "ranks": [order.index(score) + 1 for score in ranked.scores],
            "scores": ranked.scores,
        }
        others = {key: v for key, v in ranked.first.columns.items() if key not in row}
        found.append(row | others)
    counts.ranked = len(found)
    counts.alone = counts.prompts - counts.ranked - counts.tied
    return found
