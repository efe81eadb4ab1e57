"""The answer reward: against a publisher's verdicts, against mathematics, against hostile text."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.test_rewards_answer import HOSTILE
from toolkit.errors import DataError
from toolkit.rewards import get, mathematics
from toolkit.rewards.stated import stated

ANSWER = get("answer")


def graded(text, gold, reward=ANSWER):
    return reward(prompts=["…"], completions=[text], answer=[gold])[0]


@pytest.fixture(scope="module")
def solutions(assets):
    """Each real solution of GSM8K test problems: text, gold, the publisher's verdict."""
    path = assets / "data" / "gsm8k" / "model_solutions_600.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        (entry["solution"], row["ground_truth"], float(entry["is_correct"]))
        for row in rows
        for entry in row.values()
        if isinstance(entry, dict)
    ]


# The publisher's verdicts that the reward contradicts, with the reason of each: there are none.
CONTRADICTED: dict[str, str] = {}


def test_it_agrees_with_the_publisher(solutions):
    texts, golds, verdicts = map(list, zip(*solutions, strict=True))
    found = ANSWER(prompts=texts, completions=texts, answer=golds)
    assert len(found) == 2400
    assert sum(verdicts) == 906
    disagree = {
        text for text, reward, verdict in zip(texts, found, verdicts, strict=True) if reward != verdict
    }  # fmt: skip
    assert disagree == CONTRADICTED.keys()
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert ANSWER(prompts=texts, completions=chats, answer=golds) == found


def test_every_gold_answer_is_right_by_itself_and_wrong_in_another_row(gsm8k):
    golds = [json.loads(line)["answer"] for line in gsm8k.read_text(encoding="utf-8").splitlines()]
    finals = [gold.split("####")[1].strip() for gold in golds]
    assert len(golds) == 7473
    boxes = [rf"So it is \boxed{{{final}}}, of 3." for final in finals]
    for completions, answers in ((golds, golds), (boxes, finals)):
        assert set(ANSWER(prompts=golds, completions=completions, answer=answers)) == {1.0}
    shifted = ANSWER(prompts=golds, completions=golds, answer=golds[1:] + golds[:1])
    other = [int(final.replace(",", "")) for final in finals]
    pairs = zip(shifted, other, other[1:] + other[:1], strict=True)
    differing = [reward for reward, one, next_one in pairs if one != next_one]
    assert set(differing) == {0.0}
    assert len(differing) > 7000


@pytest.mark.parametrize(
    ("text", "gold", "reward"),
    [
        # numbers, in every dress
        ("She makes $18 a day.\n#### 18", "#### 18", 1), ("A: 18", "18", 1), ("18", 18, 1),
        (r"\boxed{18}", "18.0", 1), ("The answer is 18 dollars.", "$18", 1), ("50%", "50", 1),
        (r"\boxed{\$1{,}000}", "1,000", 1), (r"\boxed{18\text{ km}}", "18 km", 1), ("1/2", "0.5", 1),
        (r"\boxed{\frac{1}{2}}", "0.5", 1), ("<answer>18</answer>, by 3", "18", 1), ("19", "18", 0),
        (r"\boxed{11,\! 111}", "11111", 1), ("18", "She makes $18.", 1), ("1,234", 1234.0, 1),
        (r"\boxed{x = 18} in 3 steps", "18", 1), (r"\boxed{42 \text{ or } 43}", "42", 0),
        (r"\boxed{3\sqrt{36}}", "18", 1), (r"\boxed{\sqrt{36}}", "36", 0), (r"\boxed{6^2}", "2", 0),
        (r"\boxed{10 - 5}", "5", 0), (r"\boxed{3 \times 10^4}", "30000", 1), ("", "18", 0),
        (r"\boxed{}", "18", 0), (r"\boxed{18", "18", 1), ("not 18", "18", 0), ("three", "3", 0),
        (r"\boxed{1, 2}", "1", 0), (r"\boxed{1 or 1}", "1", 1), (r"\boxed{6 \times 7 = 42}", "42", 1),
        # mathematics
        ("The answer is $x=5$.", "x=5", 1), ("The answer is 5", "x=5", 1), ("x = 6", "x=5", 0),
        (r"so $\frac{\sqrt{3}}{2}$.", r"\frac{\sqrt 3}{2}", 1), (r"\boxed{\sqrt{12}}", r"2\sqrt3", 1),
        ("Answer: 2*sqrt(3)", r"\sqrt{12}", 1), ("Answer: 2*sqrt(5)", r"\sqrt{12}", 0),
        ("it is $[0, 1)$", "[0,1)", 1), ("it is $[0, 1]$", "[0,1)", 0), ("$(0,1)$", "[0,1)", 0),
        ("The answer is 1 or -1.", r"\pm 1", 1), ("The answers:\nAnswer: $2$ and $1$, as", "1, 2", 1),
        (r"\boxed{\{1, 2\}}", "1,2", 1), (r"\boxed{\{1, 3\}}", "1,2", 0), ("A: x < 3", "3 > x", 1),
        (r"\boxed{(x-1)(x+1)}", "x^2 - 1", 1), (r"\boxed{y = 1 + 2x}", "2x+1", 1),
        (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", 1), ("90 degrees", r"90^\circ", 1),
        (r"\[ \boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}} \]", r"\begin{pmatrix}1\\2\end{pmatrix}", 1),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", 1), ("A: Eve", r"\text{Evelyn}", 0),
        (r"The answer is not $\sqrt{2}$", r"\sqrt 2", 0), (r"\boxed{3\pi} or \boxed{2\pi}", "2π", 1),
        # gold answers that say nothing that can be checked
        ("18", "", None), ("18", None, None), ("18", True, None), ("18", ["18"], None),
        ("Paris", "Paris", None), ("18", "no number", None), ("18", float("nan"), None),
        ("1", "9^{9^{9^9}}", None), ("1", "x" * 30_000, None), ("18", "   ", None),
    ],
)  # fmt: skip
def test_what_is_right(text, gold, reward):
    assert graded(text, gold) == reward


@pytest.mark.parametrize(
    ("checker", "text", "gold", "reward"),
    [
        ("exact", "<think>Lyon?</think><answer>paris.</answer>", "Paris", 1.0),
        ("exact", "The answer is Paris.", "Paris", 1.0),
        ("exact", "Paris", "Paris", 1.0),
        ("exact", "Lyon", "Paris", 0.0),
        ("exact", "Lyon", "...", None),
        ("number", "It is 5", "x^2 is 5", 1.0),
        ("number", "5", "Paris", None),
        ("math", r"\boxed{5}", "5", 1.0),
        ("math", r"\boxed{2+3}", "5", 1.0),
        ("math", "5", "Paris", None),
    ],
)
def test_the_checker_can_be_named(checker, text, gold, reward):
    assert graded(text, gold, get("answer", checker=checker)) == reward


def test_another_column():
    reward = get("answer", column="solution")
    assert reward(prompts=[""], completions=["5"], solution=["#### 5"]) == [1.0]
    with pytest.raises(DataError) as caught:
        reward(prompts=[""], completions=["5"], answer=["5"], level=[1], trainer_state=None)
    assert str(caught.value) == (
        "reward answer: there is no column 'solution'; found answer, level: rename the right one, "
        "or name it: {name: answer, column: …}"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"First \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), ("#### 5\n", "5"),
        ("The final answer is: $x^2$, as said.", "x^2"), ("so\n\n**Answer:** 2x + 1\n", "2x + 1"),
        ("I pay $5 and get $3.", "I pay $5 and get $3"), (r"thus \(x\) and \(y\)", "y"),
        ("answer is $1$ or $2$, not $3$", "1, 2"), (r"\boxed{a{b}c}", "a{b}c"), ("", None),
        ("a\nx + 1\n", "x + 1"), ("The answer is not 5", None), (r"\boxed{ }", None),
        (r"\boxed{\}}", r"\}"),
    ],
)  # fmt: skip
def test_what_a_text_states(text, found):
    assert stated(text) == found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_completions_are_wrong_in_no_time(name):
    text = HOSTILE[name]
    for completion in (text, f"{text}\n\\boxed{{{text[:400]}}}"):
        for gold in ("18", r"\frac{\sqrt 3}{2}"):
            started = time.process_time()
            assert graded(completion, gold) == 0.0
            assert time.process_time() - started < 1  # what is quadratic takes seconds


def test_mathematics_has_an_end(monkeypatch):
    endless = "(9^{99999})^{99999}"  # to SymPy
    monkeypatch.setattr(mathematics._process(), "seconds", 0.3)
    for text in (
        endless, "9^{9^{9^9}}", "((9^{999})!)!", "(" * 400, r"\int_0^1 x^{x^{x^x}} dx",
        r"\text{" * 80, "__import__('os')", "{}", "9" * 499,
    ):  # fmt: skip
        mathematics.equal.cache_clear()
        assert mathematics.equal("1", text) is False
    with pytest.raises(TimeoutError):
        mathematics._process()("1", endless)
    monkeypatch.undo()
    assert mathematics.equal("1", r"\frac{7}{7}") is True


@pytest.mark.parametrize("text", ["x = 3 + 4 \\frac{", "{ = (3)+4 = \\foo{ "])
def test_mathematics_is_read_as_latex_and_never_as_python(text, monkeypatch):
    parser = pytest.importorskip("math_verify.parser")
    calls = []
    monkeypatch.setattr(parser, "parse_expr_cached", calls.append)
    mathematics.compare("1", text)
    assert calls == []
    parser.parse(f"${text}$", parsing_timeout=None)
    assert calls  # its second reader, had it been asked for


def test_mathematics_works_in_threads():
    pairs = [(f"{n} + x", f"x + {n + n % 2}") for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: mathematics.equal(*pair), pairs))
    assert found == [n % 2 == 0 for n in range(24)]
