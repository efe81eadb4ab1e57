"""What most samples say, and what is scored best: by hand."""

import pytest

from toolkit.evaluation.graded import Graded
from toolkit.evaluation.selection import best, share_voted, shares_best, vote
from toolkit.evaluation.tasks import load_tasks


def samples(words, question=0):
    """One sample per letter: a number is said and ended, `x` says nothing; `7` is right.

    A number in brackets was cut off.
    """
    found = []
    for index, word in enumerate(words.split()):
        said = word.strip("()")
        stopped, right = "(" not in word, said == "7"
        parsed = None if said == "x" else said
        found.append(Graded("sft", "exam", question, index, said, stopped, right, 3, parsed))
    return found


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("7", True),
        ("7 5 7", True),
        ("5 7 5", False),
        ("5 7 7 5", False),  # a tie: the first that was seen
        ("7 5 5 7", True),
        ("(5) (5) (5) 7", True),  # what was cut off does not vote
        ("x x x 7", True),  # nor does what says nothing
        ("(7) (7) 5", False),
        ("(7) x", False),
        ("x x", False),
    ],
)
def test_vote(words, right):
    assert vote(samples(words)) is right


def test_numbers_are_counted_by_value_and_texts_by_what_they_say():
    rows = [{"question": "How many?", "answer": "7"}]
    (task,) = load_tasks([{"name": "n", "rows": rows}], where="tasks")
    (asked,) = task.questions
    texts = ["7.0", "The answer is 7", "<answer>14/2</answer>", "I do not know"]
    assert [task.said(asked, text) for text in texts] == ["7", "7", "7", None]
    rows = [{"question": "Which?", "answer": "B", "choices": ["red", "blue"]}]
    (task,) = load_tasks([{"name": "c", "rows": rows}], where="tasks")
    (asked,) = task.questions
    texts = ["B", "blue", "(A)", "green"]
    assert [task.said(asked, text) for text in texts] == ["B", "B", "A", None]
    rows = [{"question": "Who?", "answer": "Ada Lovelace"}]
    (task,) = load_tasks([{"name": "e", "rows": rows}], where="tasks")
    (asked,) = task.questions
    texts = ["ada  lovelace.", "Ada Lovelace", "Ada", " ."]
    assert [task.said(asked, text) for text in texts] == ["ada lovelace"] * 2 + ["ada", None]


@pytest.mark.parametrize(
    ("words", "scores", "right"),
    [
        ("7 5 5", [1, 2, 0], False),
        ("5 7 5", [1, 2, 0], True),
        ("7 5", [1, 1], True),  # the first of equal scores
        ("5 7", [1, 1], False),
        ("5 (7)", [1, 2], False),  # chosen, and cut off
        ("5 7", [None, -3], True),
        ("7 7", [None, None], False),
    ],
)
def test_best(words, scores, right):
    assert best(samples(words), scores) is right


def test_the_first_eight_and_all():
    questions = [samples("5 " * 8 + "7", question=0), samples("7 " * 9, question=1)]
    scores = {sample.key: sample.sample for question in questions for sample in question}
    assert shares_best(questions, scores) == {"8": 0.5, "9": 1.0}
    assert shares_best([question[:8] for question in questions], scores) == {"8": 0.5}
    assert shares_best([question[:3] for question in questions], scores) == {"3": 0.5}
    assert share_voted(questions) == 0.5
