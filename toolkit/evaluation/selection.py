"""One answer out of several samples of a question: what most of them say, or what is scored best."""

from collections.abc import Callable, Mapping, Sequence

from toolkit.evaluation.graded import Graded, Key
from toolkit.inference.thinking.tally import highest, leader, tally

FEW = 8
"""Best-of-n is reported of so many first samples, and of all."""


def vote(samples: Sequence[Graded]) -> bool:
    """Whether the answer that most samples of a question give is right: self-consistency.

    A sample votes for the answer that its checker reads in it, however it is worded: 7.0 is 7. One
    that did not end by itself, or says nothing that the checker can read, does not vote. Of two
    answers with as many votes, the one that was given first wins. Where nobody votes, the question
    is not answered.

    Args:
        samples: of one question, in their order.

    Source:
        Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models".
    """
    voting = [sample for sample in samples if sample.stopped and sample.said is not None]
    first = leader(tally([sample.said for sample in voting]))
    return any(sample.right for sample in voting if sample.said == first)


def best(samples: Sequence[Graded], scores: Sequence[float | None]) -> bool:
    """Whether the sample with the highest score is right and ended; the first of equal scores.

    Args:
        samples: of one question.
        scores: of each; None is no score, and where there is none at all nothing is chosen.
    """
    place = highest(scores)
    return place is not None and samples[place].right and samples[place].stopped


def share_voted(questions: Sequence[Sequence[Graded]]) -> float:
    """The share of questions whose vote is right."""
    return _share(questions, vote)


def shares_best(
    questions: Sequence[Sequence[Graded]], scores: Mapping[Key, float | None]
) -> dict[str, float]:
    """The share of questions whose best sample is right, of the first `FEW` and of all.

    Args:
        questions: the samples of each, in their order.
        scores: of each sample, by `Graded.key`.

    Returns:
        The share by the number of samples chosen from, a text as JSON's keys are.
    """
    most = max(map(len, questions))

    def of_first(n: int) -> Callable[[Sequence[Graded]], bool]:
        return lambda samples: best(samples[:n], [scores[each.key] for each in samples[:n]])

    return {str(n): _share(questions, of_first(n)) for n in sorted({min(FEW, most), most})}


def _share(
    questions: Sequence[Sequence[Graded]], is_right: Callable[[Sequence[Graded]], bool]
) -> float:
    return sum(map(is_right, questions)) / len(questions)
