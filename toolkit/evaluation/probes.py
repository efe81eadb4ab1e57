"""The probes: short questions, each with a right answer and a wrong one, and what a stage changes in them.

A model is right where it gives its right answer more probability, per byte, than the wrong one. The
questions are in `probes.jsonl`, the same number in every group.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import digest_of
from toolkit.evaluation.intervals import mcnemar_exact

QUESTIONS = Path(__file__).with_name("probes.jsonl")
ALPHA = 0.05
"""How often, at most, a stage that changes nothing has a group named."""
FORMAT = 1
"""Of how probes are asked; margins of another are not comparable."""

Margins = Mapping[str, Sequence[float]]
"""By group, of each of its probes: how much likelier the right answer is than the wrong one."""


@dataclass(frozen=True)
class Probe:
    """One question.

    Attributes:
        group: what it looks at.
        question: the user's words.
        right: how a good answer begins, or all of it.
        wrong: the same of a bad one, of about the same length.
    """

    group: str
    question: str
    right: str
    wrong: str

    def margin(self, right: float, wrong: float) -> float:
        """How much likelier the right answer is, in nats per byte.

        Args:
            right: the log-probability of the whole right answer.
            wrong: that of the wrong one.
        """
        return right / len(self.right.encode()) - wrong / len(self.wrong.encode())


def load_probes() -> list[Probe]:
    """The probe set, group by group."""
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    return [Probe(**json.loads(line)) for line in lines]


def digest_of_probes(probes: Sequence[Probe]) -> str:
    """Changes with the questions, and with how they are asked."""
    return digest_of([FORMAT, [asdict(probe) for probe in probes]])


def right_of(margins: Margins) -> dict[str, int]:
    """By group, how many probes are answered right."""
    return {group: sum(margin > 0 for margin in found) for group, found in margins.items()}


def changes(before: Margins, after: Margins) -> list[dict[str, Any]]:
    """What became of each group, paired by question.

    A group is `worse` where more answers were lost than gained and McNemar's exact test (two-sided)
    says so, with Holm's correction for the number of groups. The answers decide, not the margins:
    any training moves every margin a little, and that is no harm.

    Args:
        before: margins of the model that the stage started from.
        after: those of what it made of it; the same probes in the same order.

    Returns:
        Of each group `group`, `n`, how many were right `before` and `after`, how many were `lost`
        and `gained`, `p` (uncorrected) and `worse`.

    Raises:
        ValueError: if the two are not of the same probes.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6 (2), 65-70.
    """
    if before.keys() != after.keys():
        raise ValueError(f"expected probes of {list(before)}, found {list(after)}")
    found: list[dict[str, Any]] = []
    for group, margins in after.items():
        pairs = [(old > 0, new > 0) for old, new in zip(before[group], margins, strict=True)]
        lost, gained = pairs.count((True, False)), pairs.count((False, True))
        counts = {"before": sum(old for old, _ in pairs), "after": sum(new for _, new in pairs)}
        tested = {"lost": lost, "gained": gained, "p": mcnemar_exact(lost, gained)}
        found.append({"group": group, "n": len(pairs), **counts, **tested})
    clear = holm([each["p"] for each in found])
    for each, is_clear in zip(found, clear, strict=True):
        each["worse"] = is_clear and each["lost"] > each["gained"]
    return found


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which of several tests are clear, so that one of them is by chance with at most `alpha`."""
    clear = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        clear[index] = True
    return clear


def in_words(stage: str, change: Mapping[str, Any]) -> str:
    """What a stage did to a group that is clearly worse."""
    n = change["n"]
    return (
        f"{stage} made {change['group']} clearly worse: {change['before']} of {n} → "
        f"{change['after']} of {n} (p = {change['p']:.1g})"
    )
