"""Checkers against real answers, against spellings by hand, and against hostile completions."""

import json
import time
from fractions import Fraction
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.rewards.answer import (
    CHECKERS,
    choice,
    chosen,
    ends_in_number,
    exact,
    final_number,
    is_gradable,
    number,
)

CITIES = ("Paris", "London", "New York", "York")
NUMBERS = ("5", "-5", "2.5", "25")


def test_every_gsm8k_answer_is_its_own_and_no_other(gsm8k):
    rows = [json.loads(line) for line in gsm8k.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 7473
    for row in rows:
        solution, final = row["answer"], row["answer"].split("####")[1].strip()
        assert number(solution, solution)
        assert number(final, solution)
        assert number(solution, final)
        assert ends_in_number(solution)
        assert not number(f"{final}1", solution)
        assert final_number(solution) == Fraction(final.replace(",", ""))


@pytest.mark.parametrize("mark", ["A:", "so"])
def test_the_publishers_verdicts_on_model_solutions(assets, mark):
    path = assets / "data" / "gsm8k" / "model_solutions_600.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    verdicts = [
        (number(entry["solution"].replace("A:", mark), row["ground_truth"]), entry["is_correct"])
        for row in rows
        for entry in row.values()
        if isinstance(entry, dict)
    ]
    assert len(verdicts) == 2400
    assert sum(right for _, right in verdicts) == 906
    assert [pair for pair in verdicts if pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"), ("She makes $18.", "18"), ("18 dollars a day", "18"), ("**18**", "18"),
        ("$1,234.50", "1234.5"), ("1,000,000.", "1000000"), ("$1{,}000$", "1000"), ("50%", "50"),
        (".5", "1/2"), ("0.50", "1/2"), ("1e5", "100000"), ("1.5E-3", "3/2000"),
        ("-5", "-5"), ("−5", "-5"), ("-$5", "-5"), ("$-5", "-5"), ("x = -5", "-5"),
        ("48-24=24", "24"), ("10 - 5", "5"), ("(3)-5", "5"), ("<<48/2=24>>24", "24"),
        ("1/2", "1/2"), ("2 1/2", "5/2"), (r"\frac{1}{2}", "1/2"), (r"-\dfrac{1}{2}", "-1/2"),
        (r"1\frac{1}{2}", "3/2"), ("#### 18\nin 2 days", "18"), ("A: 18\nB: 3", "18"),
        ("The answer is 72. It took 3 hours.", "72"), ("The answer is 72. 8*9=71", "72"),
        ("The answer is 5 + 3 = 8, by 2.", "8"), ("answer is 2*3 = 6 = 12/2 = 6", "6"),
        ("**Answer**: 5 (of 7)", "5"), ("Answer:\n\n5 of 7", "5"), ("the answer = $5, 3 left", "5"),
        (r"\boxed{18} in 2 days", "18"), (r"\boxed{\text{18}} of 2", "18"),
        (r"The answer is \(18\), of 2", "18"), ("#### 1\nNo. #### 2", "2"),
        ("10 of them answered yellow, so 9.", "9"), ("H2O has 3", "3"), ("3 of H2O", "3"),
        ("She is 12, the answer is clear", "12"),
        ("The answer is 6 x 7 = 42, by 2.", "42"), ("Answer: 50% of 84 = 42 of 84", "42"),
        ("The answer is 2^3 = 8, by 2", "8"), ("The answer is 2^{3} = 8, by 2", "8"),
        ("The answer is 5² = 25 of 30", "25"), (r"\boxed{6 \times 7 = 42} in 3", "42"),
        ("The answer is 6 cats * 7 = 42 cats of 50", "42"), ("The answer is 2**3 = 8, by 2", "8"),
        ("The answer is 42 = 6 * 7", "42"), ("The answer is 42 (6 * 7)", "42"),
        ("The answer is 1 000", "1000"), ("1 000 000.5", "2000001/2"), ("1\u00a0000", "1000"),
        (r"\boxed{1\,000}", "1000"), ("in 2020 100", "100"), ("2 100/200", "5/2"),
        ("<answer>42</answer> I used 3 steps", "42"), ("<answer>It is 42</answer> by 3", "42"),
        ("The answer is 4 <answer>5</answer>", "5"), ("<answer>1</answer><answer>2</answer>", "2"),
        ("<answer>42", "42"), ("42, not 43", "42"), ("not 41 but 42", "42"), ("42, not 6 * 7", "42"),
        ("The answer is not 41 but 42 in 3 steps", "42"), ("42 rather than 43", "42"),
        ("The answer isn't 41. It's 42 in 3 steps", "42"), ("41 is wrong, 42 is right", "42"),
        ("It is not 40, 41 or 43 but 42", "42"), ("42 (43 is not correct)", "42"),
        ("The answer is 1/2 or 0.5", "1/2"), ("It grew from 10 to 42", "42"),
        ("The answer is 42. And 3 are left", "42"), ("A: 18\n* 3 cats", "18"),
        ("Answer: **18** 3 steps", "18"),
    ],
)  # fmt: skip
def test_final_numbers(text, value):
    assert final_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "", "none", "eighteen", "NaN", "inf", "-Infinity", "٣", "１８", "½", "2½", "H2O", "v1.2.3",
        "5 at 12:30", "5 or 3-4", "3, 1,2,3", "12/25/2020", "10^6", "10^{6}", "5²", "1/0", "1e9999",
        "5 and 1e999999999", "9" * 100_000, "#### 12:30", "1,00", "5/6/7",
        "The answer is 42 or 43", "either 42 or 43", "The answer is either 42 or 43 in 3 steps",
        "The answer is 42 (or 43)", "**42** or **43**", r"\boxed{42} or \boxed{43}",
        "The answer is 42 cats, or 43 cats", "The answer is 5 hours and 30 minutes", "42 and 43",
        "The answer is not 42", "The answer is not 42 in 3 steps", "The answer isn't 42", "42 is wrong",
        "It cannot be 42.", "neither 41 nor 42", "It is not 41 cats or 42 cats", "42 isn't the answer",
        "The answer is 42. No, the answer is not 42.", "The answer is 6 * 7", "3 * 4 * 5", "6x7", "6×7",
        "The answer is 3 * 4 * 5", "The answer is 6 cats x 7", r"\boxed{6 \times 7}", "2**3",
        "The answer is 10 - 5", "The answer is 42 to 43", "84 / 2", "<answer></answer> 42",
    ],
)  # fmt: skip
def test_what_ends_up_with_no_number(text):
    assert final_number(text) is None
    assert not is_gradable("number", text)


@given(st.integers(-(10**30), 10**30), st.integers(0, 8))
def test_every_spelling_of_a_decimal_is_the_same_number(whole, places):
    value = Fraction(whole, 10**places)
    sign, digits = ("-" if whole < 0 else ""), str(abs(whole)).zfill(places + 1)
    before, behind = digits[: len(digits) - places], digits[len(digits) - places :]
    point = "." if behind else ""
    for text in (
        f"{sign}{before}{point}{behind}", f"{sign}${int(before):,}{point}{behind}.",
        f"{sign}{before}{point}{behind}00" if behind else f"{sign}{before}.0",
        f"{whole}/{10**places}", f"{whole}e-{places}",
    ):  # fmt: skip
        assert final_number(text) == final_number(f"so 7x = {text}") == value
        assert number(f"The answer is {text}\n7 more words", text)
        assert not number(text, str(whole + 10**places + 1))


def test_ends_in_number_is_about_the_end():
    for text in ("18", "#### 18", "$18.00.", "so 18%)", r"\boxed{18}", r"\frac{1}{2}"):
        assert ends_in_number(text)
    for text in ("", "18 dollars", "10^{6}", "12:30", "3 cats", "no"):
        assert not ends_in_number(text)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("Paris", "Paris", True), (" paris.\n", "Paris", True), ("PARIS!", "paris", True),
        ("New  \n York", "new york", True), ("Stra\u00dfe", "STRASSE", True), ("-5", "−5", True),
        ("Cafe\u0301", "Café", True), ("a keeps a cow.", "A keeps a cow", True),
        ("Paris, France", "Paris", False), ("It is Paris", "Paris", False), ("Pari", "Paris", False),
        ("", "Paris", False), ("Par is", "Paris", False), (".", ".", False), ("", "", False),
    ],
)  # fmt: skip
def test_exact(text, answer, right):
    assert exact(text, answer) is right


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("b) London", 1), ("B. London", 1), ("**B**", 1),
        ("B London", 1), ("Option B", 1), ("I think it is option B.", 1), ("It's (B).", 1),
        ("The correct choice is B.", 1), ("The answer is b.", 1), (r"\boxed{\text{B}}", 1),
        ("The answer is B because Paris is in France.", 1), ("B\n\nParis is in France", 1),
        ("Paris? No. #### B", 1), ("A", 0), ("A.", 0), ("a) Paris", 0), ("D", 3),
        ("London", 1), ("london.", 1), ("It is London.", 1), ("Answer: London\nParis is not", 1),
        ("Paris? The answer is London", 1), ("New York", 2), ("In New York, of course", 2),
        ("york", 3), ("It is York", 3),
        ("B. Paris", None), ("B or C", None), ("B, C", None), ("(A) or (B)", None), ("", None),
        ("New York or York", None), ("E", None), ("Z", None),
        ("A dog", None), ("I am sure", None), ("Berlin", None), ("Londoner", None), ("??", None),
        ("The answer is Berlin, not London, Paris", None), ("A or B", None),
        ("The answer is option (B) London because Paris is in France", 1), ("(A)", 0),
        ("The answer is option **B**", 1), ("The answer is (B), not (C).", 1), ("B, not C", 1),
        ("The answer is Paris, not London", 0), ("Paris rather than London", 0),
        ("It's not Paris, it's London.", 1), ("not Paris but London", 1), ("It's B", 1),
        ("The answer is not A but B", 1), ("not (A) Paris but (B) London", 1),
        ("neither (A) nor (B), so (C)", 2), ("It's not Paris, London or York but New York", 2),
        ("B is wrong, C is right", 2), ("A is wrong, C is the answer", 2), ("A is right", 0),
        ("A, B and C are wrong, so it is D", 3), ("London is wrong, Paris is right", 0),
        ("B isn't correct. It's C.", 2), ("<answer>B</answer> as Paris is in France", 1),
        ("The answer is not B", None), ("The answer isn't (B)", None), ("B is wrong", None),
        ("The answer is not London", None), ("London is not the answer", None),
        ("The answer is not A or B", None), ("It is not option A or (B)", None),
        ("The answer is B, B is wrong", None), ("Either A or B", None), ("Paris or London", None),
    ],
)  # fmt: skip
def test_chosen(text, position):
    assert chosen(text, CITIES) == position
    for index, answer in enumerate(CITIES):
        assert choice(text, answer, CITIES) is (index == position)
        assert choice(text, "ABCD"[index], CITIES) is (index == position)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("-5", 1), ("5", 0), ("The answer is -5", 1), ("The answer is −5.", 1), ("It is 2.5", 2),
        ("so 25.", 3), ("B) -5", 1), ("B) 5", None), ("A: 5", 0), ("It is 3.5", None),
        ("It is 5.1", None), ("It is -25", None), ("It is 5, then", 0),
        ("It is not 5 but -5", 1), ("It is not -5 but 5", 0), ("It is 25, not 2.5", 3),
    ],
)  # fmt: skip
def test_chosen_among_numbers(text, position):
    assert chosen(text, NUMBERS) == position


def test_a_choice_that_begins_with_another():
    choices = ("New", "New York", "New York City")
    assert chosen("It is New York City.", choices) == 2
    assert chosen("It is New York.", choices) == 1
    assert chosen("It is New.", choices) == 0
    assert chosen("C. New York City", choices) == 2


def test_a_choice_that_cannot_be_graded():
    assert is_gradable("choice", "B", CITIES)
    assert is_gradable("choice", "new york", CITIES)
    for answer, choices in (("E", CITIES), ("Berlin", CITIES), ("", CITIES), ("A", ()), ("?", "?")):
        assert not is_gradable("choice", answer, choices)


HOSTILE = {
    "digits": "9" * 100_000, "points": "1." * 50_000, "commas": "1," * 50_000, "minus": "-" * 100_000,
    "marks": "#### " * 20_000, "answers": "answer is " * 10_000, "boxes": "\\boxed{" * 15_000,
    "sum": "answer is " + "1-" * 50_000, "sums": "answer is " + "1+1=" * 25_000,
    "fractions": "\\frac{" * 20_000, "spaces": "1" + " " * 100_000, "lines": "\n" * 100_000,
    "A lines": "A:\n" * 30_000, "A spaces": ("A" + " " * 8) * 10_000, "mixed": "1 1/" * 25_000,
    "accents": "a\u0301\u0316" * 33_000, "only accents": "\u0316\u0301" * 50_000, "e": "1e" * 50_000,
    "brackets": "(" * 100_000, "options": "option " * 15_000, "is": "is " * 30_000,
    "stars": "answer" + "*" * 100_000, "texts": "\\text{" * 15_000, "null": "\0" * 100_000,
    "surrogates": "\ud800" * 50_000, "emoji": "😀" * 50_000, "points behind": "answer is 1" + "." * 99_999,
    "exponent": "1e" + "9" * 99_998, "below": "1/" + "9" * 99_998, "letters": "B, " * 33_000,
    "or": "1 or " * 20_000, "not": "not " * 25_000, "not 1": "not " + "1, " * 33_000,
    "not B": "not B or " * 10_000, "words": "cat, " * 20_000, "wrong": "B, 1 is " * 10_000,
    "thousands": "111 " * 25_000, "times": "answer is 1 x " * 7_000, "products": "1 cat * " * 12_000,
    "blocks": "<answer>" * 12_000, "not the": "not the the " * 8_000, "n't": "n't be " * 14_000,
    "1 a": "1 a" * 33_000, "1 or": "answer is 1" + " " * 50_000 + "or", "and": "1 and (" * 14_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("checker", CHECKERS)
def test_hostile_completions_are_wrong_at_once(name, checker):
    answer, text = {"number": "18", "exact": "x", "choice": "C"}[checker], HOSTILE[name]
    started = time.process_time()
    assert not CHECKERS[checker](text, answer, ("cat", "dog", "cow"))
    assert time.process_time() - started < 1  # the slowest takes 0.1 s; what is quadratic, 6 s


@settings(max_examples=300)
@given(st.text(alphabet="19.,-/^eE=+$% #\nA:B()answerit'\\boxed{}½²٣", max_size=60))
def test_no_completion_raises(text):
    for check in CHECKERS.values():
        assert check(text, "7 of 77777", ("7 of 77777", "no")) in (True, False)
        assert check(text, text, (text, "no")) in (True, False)


def test_checkers_work_in_threads():
    found = []
    threads = [Thread(target=lambda: found.append(number("A: 18", "18"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
