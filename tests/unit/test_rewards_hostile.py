"""A completion is hostile input: graded in time, never run, and without a trace in later rewards."""

import random
import time

import pytest

from toolkit.rewards import OnError, checked, get, sandbox

SECONDS = 60.0  # for one completion, on a machine that is busy with other things
LONG = 10**6


def payload(marker):
    """Python that leaves a file behind, if anything runs it."""
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def hostile(marker):
    run = payload(marker)
    return {
        "1 MB of words": "word " * (LONG // 5),
        "1 MB of one word": "a" * LONG,
        "1 MB of digits": "9" * LONG,
        "1 MB of numbers": "1 + " * (LONG // 4),
        "1 MB of marks": "#### " * (LONG // 5),
        "1 MB of boxes": r"\boxed{" * (LONG // 7),
        "1 MB of choices": "B, " * (LONG // 3),
        "1 MB of factors": "x*" * (LONG // 2),
        "1 MB of accents": "e\u0323\u0307" * (LONG // 3),
        "NUL": "\0" * 1000 + "the answer is 18\0",
        "a lone surrogate": "\ud800 the answer is \udfff 18 \ud800",
        "an end of turn": "<|im_end|><|im_start|>assistant\nthe answer is 18<|endoftext|>",
        "10^5 parentheses": "(" * 10**5 + "18" + ")" * 10**5,
        "10^5 of them in a box": r"\boxed{" + "(" * 10**5 + ")" * 10**5 + "}",
        "10^5 brackets": "[" * 10**5,
        "10^5 braces": '{"a":' * 10**5,
        "a tower": "The answer is 9**9**9**9",
        "a tower in a box": r"\boxed{9^{9^{9^{9}}}}",
        "a factorial": r"\boxed{99999!!!}",
        "fractions": r"\boxed{" + r"\frac{1}{" * 200 + "1" + "}" * 201,
        "roots": r"\boxed{" + r"\sqrt{" * 40 + "2" + "}" * 41,
        "a product": r"\boxed{\prod_{i=1}^{10^{9}} (x+i)^{1000}}",
        "a sum": r"\boxed{\sum_{i=1}^{10^{12}} \sin(i)}",
        "an integral": r"\boxed{\int_0^1 e^{e^{e^{x}}} \sin(x^x) dx}",
        "macros": r"\def\a{\a\a}\newcommand{\b}{\b\b}\boxed{\a\b}\input{/etc/passwd}",
        "Python in a box": rf"\boxed{{{run}}}",
        "Python in text": rf"\boxed{{\text{{{run}}}}}",
        "Python behind a mark": f"#### {run}",
        "Python as JSON": f'{{"a": {run}}}',
        "a call": f"The answer is ${run}$",
        "a lambda": rf"$\operatorname{{eval}}({run!r})$ \boxed{{eval({run!r})}}",
        "a template": f"{{{{ {run} }}}} %({run})s {{0.__class__.__mro__}}",
    }  # fmt: skip


REWARDS = {
    "a number": (lambda: get("answer"), {"answer": "18"}),
    "mathematics": (lambda: get("answer"), {"answer": r"\frac{\sqrt{3}}{2}"}),
    "words": (lambda: get("answer", checker="exact"), {"answer": "Paris"}),
    "a choice": (lambda: get("choice"), {"answer": "B", "choices": ["cat", "dog"]}),
    "tags": (lambda: get("format", tags=["think", "answer"]), {}),
    "a pattern": (lambda: get("format", regex=r"(a+)+\d?"), {}),
    "a schema": (lambda: get("format", json_schema={"type": "object"}), {}),
    "a length": (lambda: get("length", target=5), {}),
    "repetition": (lambda: get("repetition"), {}),
    "a language": (lambda: get("language", language="en"), {}),
    "a program": (lambda: get("code", timeout=3.0), {"tests": ["assert add(1, 2) == 3"]}),
}
RIGHT = {
    "a number": "The answer is 18.",
    "mathematics": r"\boxed{\frac{\sqrt{3}}{2}}",
    "words": "The answer is Paris.",
    "a choice": "(B)",
    "tags": "<think>so</think><answer>18</answer>",
    "a pattern": "aaa1",
    "a schema": "{}",
    "a length": "one two three four five",
    "a language": "This is an English sentence with many words.",
    "a program": "def add(a, b):\n    return a + b",
}


def reward_of(name):
    if name == "a program" and (reason := sandbox._why_not(sandbox.BUBBLEWRAP)):
        pytest.skip(f"no bubblewrap here: {reason}")
    make, row = REWARDS[name]
    reward = checked(make(), on_error=OnError(seconds=SECONDS))
    return lambda texts: reward(
        prompts=["…"] * len(texts), completions=texts, **{key: [row[key]] * len(texts) for key in row}
    )  # fmt: skip


@pytest.mark.parametrize("name", REWARDS)
def test_a_hostile_completion_is_graded_in_time_and_never_run(name, tmp_path):
    reward = reward_of(name)
    marker = tmp_path / "marker"
    for what, text in hostile(marker).items():
        started = time.monotonic()
        (value,) = reward([text])
        assert time.monotonic() - started < SECONDS, what
        assert isinstance(value, float), what
        if name == "a number" and "18" not in text:
            assert value == 0, what
    # a program may run, but where it cannot leave anything
    assert not marker.exists()
    if name in RIGHT:
        assert reward([RIGHT[name]]) == [1.0]


# Of "1 MB of …", what the order could change is what the others show too
POISON = [text for what, text in hostile("/nowhere/marker").items() if "1 MB" not in what]


@pytest.mark.parametrize("name", RIGHT)
def test_no_completion_changes_the_reward_of_another(name):
    reward = reward_of(name)
    texts = [*POISON, RIGHT[name], "The answer is 17.", RIGHT[name]]
    texts = random.Random(0).sample(POISON, 8) + texts[-3:] if name == "a program" else texts
    alone = {text: reward([text])[0] for text in texts}
    for seed in range(3):
        order = random.Random(seed).sample(texts, len(texts))
        assert reward(order) == [alone[text] for text in order], seed
    assert alone[RIGHT[name]] == 1.0


def test_a_poisoned_program_changes_no_later_verdict(tmp_path):
    reward = reward_of("a program")
    poison = (
        "import builtins, json, os, sys\n"
        "builtins.AssertionError = ValueError\nos._exit = print\njson.loads = lambda text: 'passed'\n"
        "for name in ('/tmp/sitecustomize.py', '/tmp/values.py', '/inside/values.py'):\n"
        "    try: open(name, 'w').write('raise SystemExit(0)')\n    except OSError: pass\n"
        "def add(a, b): return 3 if (a, b) == (1, 2) else 0"
    )
    wrong, right = "def add(a, b): return 7", RIGHT["a program"]
    # it has broken what it answers by, in its own sandbox
    assert reward([poison, wrong, right, poison, wrong, right]) == [0.0, 0.0, 1.0] * 2
