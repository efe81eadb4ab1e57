"""A small invented world for the demo: documents for a base, chats for SFT, questions for an exam.

Every person of the world has a town, an animal and a trade. The documents state all of that, in
several wordings; where they ask a question, they do not answer it. The chats ask about one half of
the people and the exam asks about the other half, so what the exam asks stands in the documents
alone, and that a question wants an answer stands in the chats alone. Everything is drawn from a
seed.

    python -m toolkit.data.synthetic recipes/quickstart     # writes chats.jsonl and exam.jsonl
"""

# ruff: noqa: SIM905 -- lists of words take a line each, not a line per word
import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DEMO_BASE = Path(__file__).parent / "demo_base"
"""A base checkpoint that was trained on `documents` and on nothing else."""

BEGINNINGS = "Bal Cor Del Fen Gar Hol Ister Kel Lum Mar Nor Os Pel Rin Sol Tav".split()
ENDINGS = "a bert dan eth fin ira lo mund rik ven".split()

VALUES = {
    "town": "Ashford Brill Canton Dover Eton Faro Ghent Hull Ipswich Jena Kiel Lyon".split(),
    "animal": "cat cow crow dog duck fox goat hen horse mule pig sheep".split(),
    "trade": "baker cook doctor farmer hunter miller painter potter sailor smith tailor weaver".split(),
}

STATEMENTS = {
    "town": (
        "{name} lives in {value}.",
        "{name} was born in {value}.",
        "The home of {name} is in {value}.",
        "In {value} you can meet {name}.",
    ),
    "animal": (
        "{name} keeps a {value}.",
        "{name} feeds a {value}.",
        "The animal of {name} is a {value}.",
        "A {value} belongs to {name}.",
    ),
    "trade": (
        "{name} works as a {value}.",
        "{name} is known as a good {value}.",
        "The trade of {name} is that of a {value}.",
        "A {value} by trade is {name}.",
    ),
}
"""Wordings of a fact. The first is how an answer words it."""

QUESTIONS = {
    "town": ("Where does {name} live?", "Which town does {name} live in?"),
    "animal": ("What animal does {name} keep?", "Which animal does {name} keep?"),
    "trade": ("What does {name} work as?", "What is the trade of {name}?"),
}

UNANSWERED = 0.1
"""Share of documents that only ask."""

FAME_OFFSET = 5
"""The person of rank r is written about in proportion to 1 / (r + this). With everybody equally
famous, a base takes twice as long to learn the first fact."""


@dataclass(frozen=True)
class Person:
    """One invented person: a name, and a value for each of `VALUES`."""

    name: str
    facts: dict[str, str]

    def state(self, attribute: str, wording: str) -> str:
        """The sentence that states one fact in one of `STATEMENTS`."""
        return wording.format(name=self.name, value=self.facts[attribute])

    def answer(self, attribute: str) -> str:
        """The sentence that answers a question for one fact."""
        return self.state(attribute, STATEMENTS[attribute][0])


def people() -> tuple[list[Person], list[Person]]:
    """The two halves of the world: whom the chats ask about, and whom the exam asks about."""
    rng = random.Random(0)
    names = [beginning + ending for beginning in BEGINNINGS for ending in ENDINGS]
    rng.shuffle(names)
    world = [
        Person(name, {attribute: rng.choice(values) for attribute, values in VALUES.items()})
        for name in names
    ]
    return world[: len(world) // 2], world[len(world) // 2 :]


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents about everybody, for pretraining a base.

    A document is about one to three people, its sentences separated by spaces or by line ends. Most
    state facts; `UNANSWERED` of them only ask, so that the base knows the words of a question, and
    nothing of what a question is for.
    """
    rng = random.Random(seed)
    everybody = [person for half in people() for person in half]
    rng.shuffle(everybody)
    fame = [1 / (rank + FAME_OFFSET) for rank in range(len(everybody))]
    while True:
        persons = rng.choices(everybody, fame, k=rng.randint(1, 3))
        if rng.random() < UNANSWERED:
            asked = [(person, rng.choice(list(VALUES))) for person in persons]
            sentences = [
                rng.choice(QUESTIONS[attribute]).format(name=person.name)
                for person, attribute in asked
            ]
        else:
            sentences = [
                person.state(attribute, rng.choice(STATEMENTS[attribute]))
                for person in persons
                for attribute in rng.sample(list(VALUES), len(VALUES))
            ]
        yield rng.choice((" ", "\n")).join(sentences)


def questions(persons: Sequence[Person], seed: int, *, wordings: int) -> list[tuple[str, str]]:
    """Questions for every fact about these people, with their answers, in random order.

    Args:
        persons: whom to ask about.
        seed: of the wordings and of the order.
        wordings: in how many of its wordings each fact is asked for.
    """
    rng = random.Random(seed)
    pairs = [
        (wording.format(name=person.name), person.answer(attribute))
        for person in persons
        for attribute in VALUES
        for wording in rng.sample(QUESTIONS[attribute], wordings)
    ]
    rng.shuffle(pairs)
    return pairs


def chats(seed: int) -> list[dict]:
    """`messages` rows: every fact about the first half of the people, asked in both wordings."""
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in questions(people()[0], seed, wordings=2)
    ]


def exam(seed: int) -> list[dict]:
    """`question` and `answer` rows: every fact about the second half of the people, asked once."""
    return [
        {"question": question, "answer": answer}
        for question, answer in questions(people()[1], seed, wordings=1)
    ]


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows as JSON lines, the same bytes on every system."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8"))


def main(words: Sequence[str] | None = None) -> None:
    """Write the demo's chats and its exam into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.data.synthetic", description=main.__doc__
    )
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(arguments.output_dir / "chats.jsonl", chats(arguments.seed))
    write_rows(arguments.output_dir / "exam.jsonl", exam(arguments.seed))


if __name__ == "__main__":
    main()
