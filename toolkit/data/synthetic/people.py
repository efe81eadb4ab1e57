"""The people of the demo's world: a name, and a town, an animal and a trade for each.

The documents state all of that in several wordings; where they ask, they do not answer. The chats
ask about one half of the people and the exam about the other half: what the exam asks stands in
the documents alone, and that a question wants an answer stands in the chats alone.
"""

# ruff: noqa: SIM905 -- lists of words take a line each, not a line per word
import random
from collections.abc import Sequence
from dataclasses import dataclass

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

OTHER_QUESTIONS = {
    "town": ("Where is the home of {name}?", "In which town can you meet {name}?"),
    "animal": ("What animal does {name} feed?", "Which animal belongs to {name}?"),
    "trade": ("What is {name} by trade?", "What is {name} known as?"),
}
"""Wordings that no document asks in, and no exam; what they want to know stands in documents."""

ANNOUNCED = "This is about {name}."

UNANSWERED = 0.2
"""Share of documents about people that only ask."""
SILENT = "{name} did not say."
"""What follows half of the questions. So a base knows that who is asked about is spoken of next,
and still nothing of what a question is for."""

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


def halves() -> tuple[list[Person], list[Person]]:
    """Whom the chats ask about, and whom the exam asks about; the same in every world."""
    rng = random.Random(0)
    names = [beginning + ending for beginning in BEGINNINGS for ending in ENDINGS]
    rng.shuffle(names)
    world = [
        Person(name, {attribute: rng.choice(values) for attribute, values in VALUES.items()})
        for name in names
    ]
    return world[: len(world) // 2], world[len(world) // 2 :]


BY_FAME = sorted((person for half in halves() for person in half), key=lambda who: who.name)
FAME = [1 / (rank + FAME_OFFSET) for rank in range(len(BY_FAME))]


def portrait(person: Person, rng: random.Random) -> list[str]:
    """Every fact about a person, each in one of its wordings; half of them are announced."""
    announced = [ANNOUNCED.format(name=person.name)] if rng.random() < 0.5 else []
    stated = [
        person.state(attribute, rng.choice(STATEMENTS[attribute]))
        for attribute in rng.sample(list(VALUES), len(VALUES))
    ]
    return announced + stated


def document(rng: random.Random) -> str:
    """A document about one to three people; `UNANSWERED` of them ask, and nobody answers."""
    persons = rng.choices(BY_FAME, FAME, k=rng.randint(1, 3))
    if rng.random() < UNANSWERED:
        asked = [(person, rng.choice(list(VALUES))) for person in persons]
        sentences = [
            sentence.format(name=person.name)
            for person, attribute in asked
            for sentence in (rng.choice(QUESTIONS[attribute]), SILENT)[: rng.randint(1, 2)]
        ]
    else:
        sentences = [sentence for person in persons for sentence in portrait(person, rng)]
    return rng.choice((" ", "\n")).join(sentences)


def questions(persons: Sequence[Person], rng: random.Random) -> list[tuple[str, str]]:
    """A question for every fact about these people, with its answer, in random order.

    Args:
        persons: whom to ask about.
        rng: draws the wordings and the order.
    """
    pairs = [
        (wording.format(name=person.name), person.answer(attribute))
        for person in persons
        for attribute in VALUES
        for wording in rng.sample(QUESTIONS[attribute], 1)
    ]
    rng.shuffle(pairs)
    return pairs


def chatted(persons: Sequence[Person]) -> list[tuple[str, str]]:
    """Every fact about these people in every wording of its question, with its answer."""
    return [
        (wording.format(name=person.name), person.answer(attribute))
        for person in persons
        for attribute in VALUES
        for wording in (*QUESTIONS[attribute], *OTHER_QUESTIONS[attribute])
    ]
