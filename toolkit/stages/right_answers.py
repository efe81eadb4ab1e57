"""Which of a round's answers are learnt: those that are right, by choice few and short or unlike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from toolkit.evaluation.graded import Key
from toolkit.stages.scored import Answer

Scores = Mapping[str, Mapping[Key, float | None]]


@dataclass(frozen=True)
class Right:
    """An answer that was verified right.

    Attributes:
        answer: with its prompt, which never has a hint.
        reward: the sum of its rewards.
        hinted: whether the model was shown the right answer when it wrote this one.
    """

    answer: Answer
    reward: float
    hinted: bool = False

    @property
    def problem(self) -> int:
        """Which problem it answers."""
        return self.answer.key[2]

    @property
    def sample(self) -> int:
        """Which of the answers to that problem it is."""
        return self.answer.key[3] or 0


@dataclass
class Counts:
    """What became of the problems and of the answers of one round.

    Attributes:
        problems: all of them.
        solved: problems with an answer that is right.
        rationalised: problems with one only once the right answer was shown.
        answers: all that were sampled, with and without a hint.
        right: answers that ended and are right.
        unstopped: left out because they were cut off.
        empty: left out because there is nothing in them to learn.
        unscored: left out because a reward gave no score.
        quoting: left out because they speak of the hint.
        unasked: problems without a right answer that could be shown.
        traces: answers that are learnt.
    """

    problems: int = 0
    solved: int = 0
    rationalised: int = 0
    answers: int = 0
    right: int = 0
    unstopped: int = 0
    empty: int = 0
    unscored: int = 0
    quoting: int = 0
    unasked: int = 0
    traces: int = 0

    def lines(self) -> list[str]:
        """For a person."""
        found = [
            f"{self.solved:,} of {self.problems:,} problems answered right, "
            f"{self.rationalised:,} more with a hint; {self.traces:,} of {self.right:,} right "
            f"answers are learnt, of {self.answers:,} sampled"
        ]
        left_out = [
            (self.unstopped, "answers left out: cut off at max_completion_length"),
            (self.empty, "answers left out: empty"),
            (self.unscored, "answers left out: a reward gave no score"),
            (self.quoting, "answers left out: they speak of the hint"),
            (self.unasked, "problems not asked with a hint: there is no answer to show"),
        ]
        return found + [f"{count:,} {what}" for count, what in left_out if count]


def right_of(
    answers: Sequence[Answer],
    scores: Scores,
    least: float,
    counts: Counts,
    *,
    hinted: bool = False,
) -> list[Right]:
    """The answers whose rewards add up to enough.

    Args:
        answers: all that ended.
        scores: of each reward.
        least: the least sum that counts as right.
        counts: takes how many are, and how many have no score.
        hinted: whether the right answer was shown.
    """
    found: list[Right] = []
    for each in answers:
        parts = [of_one[each.key] for of_one in scores.values()]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            counts.unscored += 1
        elif sum(known) >= least:
            found.append(Right(each, sum(known), hinted))
    counts.right += len(found)
    return found


def chosen(right: Sequence[Right], keep: str, most: int) -> list[Right]:
    """Those that are learnt, problem by problem.

    Args:
        right: every right answer.
        keep: "all" takes them as they were sampled, the same words again too, so that what a model
            says often is learnt often; "shortest" the fewest tokens first; "diverse" those least
            like the ones that are taken already.
        most: of one problem, at most.
    """
    by_problem: dict[int, list[Right]] = {}
    for each in right:
        by_problem.setdefault(each.problem, []).append(each)
    take = ORDERS[keep]
    return [each for same in by_problem.values() for each in take(same)[:most]]


def shortest(same: Sequence[Right]) -> list[Right]:
    """Different answers to one problem, the fewest tokens first."""
    return sorted(distinct(same), key=lambda each: (len(each.answer.input_ids), each.sample))


def diverse(same: Sequence[Right]) -> list[Right]:
    """Different answers to one problem, each the one least like those before it.

    The shortest comes first. How alike two are is the Jaccard index of their pairs of words.
    """
    rest = shortest(same)
    found = rest[:1]
    rest = rest[1:]
    words = {id(each): pairs(each.answer.text) for each in (*found, *rest)}
    while rest:
        nearest = [
            max(alike(words[id(each)], words[id(other)]) for other in found) for each in rest
        ]
        found.append(rest.pop(nearest.index(min(nearest))))
    return found


def distinct(same: Sequence[Right]) -> list[Right]:
    """Answers of the same words once, the first of them."""
    return list({" ".join(each.answer.text.split()): each for each in reversed(same)}.values())[
        ::-1
    ]


def pairs(text: str) -> set[tuple[str, str]]:
    """Every two words that follow one another; of one word, it and nothing."""
    words = text.split()
    return set(pairwise(words)) or {(text, "")}


def alike(one: set[Any], other: set[Any]) -> float:
    """The share of what two sets have together that both have."""
    return len(one & other) / len(one | other)


ORDERS: dict[str, Callable[[Sequence[Right]], list[Right]]] = {
    "all": lambda same: sorted(same, key=lambda each: each.sample),
    "shortest": shortest,
    "diverse": diverse,
}
"""What `keep` may be, and in which order it takes the answers to a problem."""
