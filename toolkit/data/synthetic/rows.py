"""The rows of the demo's world: documents for a base, chats, problems and exams.

Each is drawn from a seed. The people, and what is true of them, are the same in every world.
"""

import random
import zlib
from collections.abc import Callable, Iterator

from toolkit.data.synthetic import people
from toolkit.data.synthetic.problems import (
    LENGTHS,
    OPENING,
    Problem,
    chain,
    direct,
    problem,
    sums_of,
)

COUNTING_CHATS = 1200
PROBLEMS = 480
"""Problems to learn from by rewards."""
ASKED = 560
"""Other problems, whose answers are ranked."""
TRIED = 80
"""Questions that tell which round of training is the best."""
EXAM = 160
"""Questions of each exam."""

WORKED = {2: 0.52, 3: 0.34, 4: 0.3}
"""How often a chat shows the working, by the number of changes: people show it where it is short.
So an assistant that imitates them thinks least where it would help most."""
RAMBLING = 0.1
"""How often a chat says something else first."""

BREAKS = (" ", "\n")
"""What stands between two sentences that are about different things."""


def _people(rng: random.Random) -> str:
    return people.document(rng)


def _sums(rng: random.Random) -> str:
    start, *changes = chain(rng, rng.randint(1, 6), held_out=False)
    totals = [start]
    for change in changes:
        totals.append(totals[-1] + change)
    return " ".join(sums_of(totals))


def _running(rng: random.Random) -> str:
    told = problem(rng, held_out=False)
    first, *changes = told.sentences
    pairs = zip(changes, told.sums, strict=True)
    return " ".join([first, *(words for pair in pairs for words in pair)])


def _counted(rng: random.Random) -> str:
    told = problem(rng, held_out=False)
    answer = told.working if rng.random() < 0.5 else " ".join([OPENING, *told.sums])
    return _story(told, rng) + rng.choice(BREAKS) + answer


def _at_once(rng: random.Random) -> str:
    told = problem(rng, held_out=False)
    return _story(told, rng) + rng.choice(BREAKS) + direct(told.answer)


def _unfinished(rng: random.Random) -> str:
    return _story(problem(rng, held_out=False), rng)


def _liking(rng: random.Random) -> str:
    return rambling(problem(rng, held_out=False), rng)


def _story(told: Problem, rng: random.Random) -> str:
    return told.question if rng.random() < 0.5 else " ".join(told.sentences)


KINDS: dict[Callable[[random.Random], str], float] = {
    _people: 0.38,
    _counted: 0.36,
    _running: 0.10,
    _sums: 0.07,
    _at_once: 0.04,
    _unfinished: 0.03,
    _liking: 0.02,
}
"""What documents are about, and each kind's share."""


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents for pretraining a base: no chat, and no word of an exam.

    A document is one to three pieces of one kind, separated by spaces or by line ends.
    """
    rng = random.Random(seed)
    while True:
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        pieces = 1 if kind in (_people, _sums) else rng.randint(1, 3)
        yield rng.choice(BREAKS).join(kind(rng) for _ in range(pieces))


def rambling(told: Problem, rng: random.Random) -> str:
    """A sentence or two beside the point."""
    words = [f"{told.name} likes {told.thing}.", f"{told.name} wants more {told.thing}."]
    return " ".join(words[: rng.randint(1, 2)])


def answer_like_people(told: Problem, rng: random.Random) -> str:
    """What the chats answer: always right, with the working or without."""
    drawn = rng.random()
    if drawn < RAMBLING:
        return f"{rambling(told, rng)} {direct(told.answer)}"
    worked = drawn < RAMBLING + WORKED[len(told.changes)]
    return told.working if worked else direct(told.answer)


def chats(seed: int) -> list[dict]:
    """`messages` rows of two tasks, told apart by their prompts alone: facts and problems.

    Every fact about half of the people is asked for in every wording.
    """
    rng = random.Random(seed)
    told = [problem(rng, held_out=False) for _ in range(COUNTING_CHATS)]
    pairs = [(each.question, answer_like_people(each, rng)) for each in told]
    pairs += people.chatted(people.halves()[0])
    rng.shuffle(pairs)
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in pairs
    ]


def problems(seed: int, count: int = PROBLEMS) -> list[dict]:
    """`prompt` and `answer` rows, for learning from answers that can be checked."""
    return _to_solve(random.Random(f"problems {seed}"), count, ranked=False)


def asked(seed: int, count: int = ASKED) -> list[dict]:
    """`prompt` and `answer` rows whose answers are ranked; no problem of `problems` is among them.

    What a reward model has been taught by is then no problem that a policy is rewarded for.
    """
    return _to_solve(random.Random(f"asked {seed}"), count, ranked=True)


def tried_counting(seed: int) -> list[dict]:
    """`question` and `answer` rows by which rounds of training are compared: no exam's, no problem's."""
    found = _to_solve(random.Random(f"tried {seed}"), TRIED, ranked=True)
    return [{"question": row["prompt"][0]["content"], "answer": row["answer"]} for row in found]


def _to_solve(rng: random.Random, count: int, *, ranked: bool) -> list[dict]:
    """Different problems of one half of all that are not the exam's, whatever the seed."""
    found: dict[tuple[int, ...], Problem] = {}
    while len(found) < count:
        told = problem(rng, held_out=False)
        chain_told = (told.start, *told.changes)
        if (zlib.crc32(repr(chain_told).encode()) % 2 == 0) == ranked:
            found.setdefault(chain_told, told)
    return [
        {"prompt": [{"role": "user", "content": each.question}], "answer": str(each.answer)}
        for each in found.values()
    ]


def shown_counting(seed: int) -> list[dict]:
    """`question` and `answer` rows that a base is shown before a question: as in the chats."""
    rng = random.Random(f"shown {seed}")
    told = [problem(rng, held_out=False, length=length) for length in (*LENGTHS, LENGTHS[0])]
    return [{"question": each.question, "answer": answer_like_people(each, rng)} for each in told]


def shown_people(seed: int) -> list[dict]:
    """The same about people."""
    rng = random.Random(f"shown {seed}")
    pairs = people.questions(people.halves()[0], rng)
    return [{"question": question, "answer": answer} for question, answer in pairs[:4]]


def exam_counting(seed: int) -> list[dict]:
    """`question` and `answer` rows: problems whose openings occur nowhere else, each once."""
    rng = random.Random(f"exam {seed}")
    found: dict[tuple[int, ...], Problem] = {}
    while len(found) < EXAM:
        told = problem(rng, held_out=True, length=LENGTHS[len(found) % len(LENGTHS)])
        found.setdefault((told.start, *told.changes), told)
    return [{"question": each.question, "answer": str(each.answer)} for each in found.values()]


def exam_people(seed: int) -> list[dict]:
    """`question` and `answer` rows about the half of the people that no chat asks about."""
    pairs = people.questions(people.halves()[1], random.Random(f"exam {seed}"))
    return [{"question": question, "answer": answer} for question, answer in pairs[:EXAM]]
