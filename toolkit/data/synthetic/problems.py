"""The problems of the demo's world: somebody has some things, and their number changes.

    Tava has 9 pears. Tava loses 6. Tava finds 3. How many pears does Tava have?

A document shows the working, "Let us count. 9-6=3. 3+3=6. The answer is 6.", or, seldom, the answer
alone. A small model learns the first and cannot learn the second: each sum is a fact to be known,
and a whole chain of them is more than a few layers can do at once.

What the exam asks occurs nowhere else. Every chain has its opening (how many there were, and the
first two changes), and one opening in `HELD_OUT` belongs to the exam. No other chain holds such an
opening anywhere, neither at its beginning nor further on; so no problem of the exam occurs in what
is trained on, not as a part of a longer one either.
"""

# ruff: noqa: SIM905 -- lists of words take a line each, not a line per word
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from toolkit.data.synthetic.people import BY_FAME

THINGS = "apples beans coins eggs nuts pears plums shells".split()
GAINS = ("finds", "buys", "gets")
LOSSES = ("loses", "sells", "gives away")

MOST = 20
"""How many things anybody ever has."""
MOST_AT_FIRST = 12
MOST_CHANGE = 9
LENGTHS = (2, 3, 4)
"""How many changes a problem has."""

HELD_OUT = 8
"""One opening in so many is the exam's."""

OPENING = "Let us count."


@dataclass(frozen=True)
class Problem:
    """A chain of changes, told of one person and one kind of thing.

    Attributes:
        name: the person.
        thing: what is counted, in the plural.
        start: how many there were.
        changes: what came and went, in order; a loss is negative.
        verbs: the word for each change.
    """

    name: str
    thing: str
    start: int
    changes: tuple[int, ...]
    verbs: tuple[str, ...]

    @cached_property
    def totals(self) -> list[int]:
        """How many there are at first and after each change."""
        found = [self.start]
        for change in self.changes:
            found.append(found[-1] + change)
        return found

    @property
    def answer(self) -> int:
        """How many there are in the end."""
        return self.totals[-1]

    @property
    def sentences(self) -> list[str]:
        """The story, without the question."""
        told = [f"{self.name} has {self.start} {self.thing}."]
        for verb, change in zip(self.verbs, self.changes, strict=True):
            told.append(f"{self.name} {verb} {abs(change)}.")
        return told

    @property
    def asked(self) -> str:
        """The question alone."""
        return f"How many {self.thing} does {self.name} have?"

    @property
    def question(self) -> str:
        """The story and the question."""
        return " ".join([*self.sentences, self.asked])

    @property
    def sums(self) -> list[str]:
        """The working, a sum for each change."""
        return sums_of(self.totals)

    @property
    def working(self) -> str:
        """The answer with its working."""
        return " ".join([OPENING, *self.sums, direct(self.answer)])


def direct(number: int) -> str:
    """The answer alone."""
    return f"The answer is {number}."


def sums_of(totals: Sequence[int]) -> list[str]:
    """A sum for each step from one total to the next."""
    return [f"{before}{after - before:+d}={after}." for before, after in pairwise(totals)]


def is_held_out(start: int, first: int, second: int) -> bool:
    """Whether an opening belongs to the exam."""
    return zlib.crc32(f"{start}{first:+d}{second:+d}".encode()) % HELD_OUT == 0


def chain(rng: random.Random, length: int, *, held_out: bool) -> tuple[int, ...]:
    """A start and its changes, of the exam or of everything else.

    Every total is between 0 and `MOST`, and of a problem's few changes no two are as large: what
    was counted last then tells what to count next. A chain of one change is too short to be the
    exam's.
    """
    while True:
        totals = [rng.randint(1, MOST_AT_FIRST)]
        for _ in range(length):
            low, high = max(0, totals[-1] - MOST_CHANGE), min(MOST, totals[-1] + MOST_CHANGE)
            totals.append(rng.choice([n for n in range(low, high + 1) if n != totals[-1]]))
        changes = [after - before for before, after in pairwise(totals)]
        if length in LENGTHS and len(set(map(abs, changes))) < length:
            continue
        openings = [
            is_held_out(*opening) for opening in zip(totals, changes, changes[1:], strict=False)
        ]
        if any(openings[:1]) if held_out else not any(openings):
            return (totals[0], *changes)


def problem(rng: random.Random, *, held_out: bool, length: int | None = None) -> Problem:
    """A problem of the exam, or of everything else.

    Args:
        rng: draws it.
        held_out: whether it is the exam's.
        length: how many changes; by default one of `LENGTHS`.
    """
    start, *changes = chain(rng, length or rng.choice(LENGTHS), held_out=held_out)
    verbs = tuple(rng.choice(GAINS if change > 0 else LOSSES) for change in changes)
    return Problem(rng.choice(BY_FAME).name, rng.choice(THINGS), start, tuple(changes), verbs)
