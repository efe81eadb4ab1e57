"""The quickstart's files are what the generator writes, and its exams are truly held out."""

import itertools
import json
import re
from pathlib import Path

import pytest

from toolkit.data.synthetic import __main__ as generator
from toolkit.data.synthetic import people, problems, rows

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"
SUM = re.compile(r"(\d+)([+-]\d+)=(\d+)\.")
RUN = re.compile(r"(?:\d+[+-]\d+=\d+\.\s?)+")
TOLD = re.compile(r" has (\d+) \w+\.((?: \w+ (?:finds|buys|gets|loses|sells|gives away) \d+\.)+)")
CHANGE = re.compile(r"(finds|buys|gets|loses|sells|gives away) (\d+)")


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def told(text: str) -> list[tuple[int, ...]]:
    """Every story in a text, as a start and its changes."""
    found = []
    for start, changes in TOLD.findall(re.sub(r"\d+[+-]\d+=\d+\.", "", text)):
        signed = [
            int(n) * (1 if verb in problems.GAINS else -1) for verb, n in CHANGE.findall(changes)
        ]
        found.append((int(start), *signed))
    return found


def worked(text: str) -> list[tuple[int, ...]]:
    """Every chain of sums in a text, each of which begins where the one before it ended."""
    chains: list[list[int]] = []
    for run in RUN.findall(text):
        last = None
        for start, change, total in SUM.findall(run):
            if int(start) == last:
                chains[-1].append(int(change))
            else:
                chains.append([int(start), int(change)])
            last = int(total)
    return [tuple(chain) for chain in chains]


def openings(chain: tuple[int, ...]) -> set[tuple[int, int, int]]:
    """Every three numbers that a longer chain could be said to hold the beginning of another by."""
    totals = list(itertools.accumulate(chain))
    return set(zip(totals, chain[1:], chain[2:], strict=False))


@pytest.fixture(scope="module")
def examined() -> set[tuple[int, int, int]]:
    """The openings of the exam's problems."""
    chains = [told(row["question"])[0] for row in read("exam_counting.jsonl")]
    assert len(set(chains)) == len(chains) == rows.EXAM >= 150
    return {(chain[0], chain[1], chain[2]) for chain in chains}


def test_committed_rows_are_what_the_generator_writes(tmp_path):
    generator.main([str(tmp_path)])
    assert {path.name for path in FOLDER.glob("*.jsonl")} == {p.name for p in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        assert (FOLDER / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("made", generator.FILES.values(), ids=generator.FILES)
def test_a_seed_changes_the_rows_and_repeats_them(made):
    assert made(1) == made(1)
    assert made(1) != made(2)


def test_no_problem_of_the_exam_occurs_elsewhere_not_inside_a_longer_one_either(examined):
    texts = list(itertools.islice(rows.documents(0), 10_000))
    for name in ("chats", "asked", "problems", "shown_counting"):
        texts += [json.dumps(row, ensure_ascii=False) for row in read(f"{name}.jsonl")]
    chains = [chain for text in texts for chain in (*told(text), *worked(text))]
    assert len(chains) > 15_000
    seen = set().union(*map(openings, chains))
    assert len(seen) > 1000
    assert not examined & seen


def test_nobody_of_the_exam_is_asked_about_in_the_chats():
    asked = {
        row["messages"][0]["content"]
        for row in read("chats.jsonl")
        if "How many" not in row["messages"][0]["content"]
    }
    trained, examined = people.halves()
    assert len(trained) == len(examined) == 80
    for person in trained:
        assert sum(f" {person.name}?" in q or f" {person.name} " in q for q in asked) == 12
    for person in examined:
        assert not any(f" {person.name}?" in q or f" {person.name} " in q for q in asked)
    names = {row["answer"].split()[0] for row in read("exam_people.jsonl")}
    assert len(read("exam_people.jsonl")) == rows.EXAM
    assert names <= {person.name for person in examined}


def test_documents_state_every_fact_and_answer_no_question_about_people():
    texts = list(itertools.islice(rows.documents(3), 60_000))
    text = " ".join(texts)
    for person in people.BY_FAME:
        for attribute in people.VALUES:
            assert person.answer(attribute) in text, person.answer(attribute)
    asking = [t for t in texts if re.search(r"(Where|Which|What) ", t)]
    assert asking
    stated = (
        "lives",
        "works",
        "keeps",
        "feeds",
        "home",
        "trade of",
        "born",
        "belongs",
        "animal of",
    )
    assert not any(word in re.sub(r"[^.?]*\?", "", t) for t in asking for word in stated)


def test_what_is_shown_is_right():
    for row in read("chats.jsonl"):
        question, answer = (message["content"] for message in row["messages"])
        if "How many" in question:
            (chain,) = told(question)
            assert answer.endswith(f"The answer is {sum(chain)}.")
            if "Let us count." in answer:
                assert worked(answer) == [chain]


def chains_of(written: list[dict]) -> set[tuple[int, ...]]:
    """The problems of prompts that end with the user's turn, each of them right and once."""
    found = set()
    for row in written:
        (message,) = row["prompt"]
        assert message["role"] == "user"
        (chain,) = told(message["content"])
        assert row["answer"] == str(sum(chain))
        found.add(chain)
    assert len(found) == len(written)
    return found


def test_what_is_ranked_is_no_problem_to_be_rewarded_for():
    asked, rewarded = (chains_of(read(f"{name}.jsonl")) for name in ("asked", "problems"))
    assert len(asked) == rows.ASKED >= 400
    assert len(rewarded) == rows.PROBLEMS
    assert not asked & rewarded
    assert not chains_of(rows.asked(1, 900)) & chains_of(rows.problems(2, 900)), "of any seed"


def test_their_numbers_are_parameters_of_the_writer(tmp_path):
    generator.main([str(tmp_path), "--asked", "7", "--problems", "5"])
    lines = {
        name: (tmp_path / f"{name}.jsonl").read_text().splitlines()
        for name in ("asked", "problems")
    }
    assert {name: len(found) for name, found in lines.items()} == {"asked": 7, "problems": 5}
    whole = (FOLDER / "asked.jsonl").read_text().splitlines()
    assert whole[:7] == lines["asked"], "more of them begin as fewer do"


def test_the_working_is_shown_least_where_it_is_longest():
    shown: dict[int, list[bool]] = {}
    for row in read("chats.jsonl"):
        question, answer = (message["content"] for message in row["messages"])
        if "How many" in question:
            shown.setdefault(len(told(question)[0]) - 1, []).append("Let us count." in answer)
    shares = [sum(shown[length]) / len(shown[length]) for length in problems.LENGTHS]
    assert shares[0] > shares[1] > shares[2] > 0.1
