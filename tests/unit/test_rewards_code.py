"""The code reward: programs that are right, that are wrong, and that want to be thought right."""

import time

import pytest

from toolkit.errors import RecipeError, TrainingError
from toolkit.rewards import code, get, sandbox

ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


@pytest.fixture(scope="module", autouse=True)
def bubblewrap():
    if reason := sandbox._why_not(sandbox.BUBBLEWRAP):
        pytest.skip(f"no bubblewrap here: {reason}")


def graded(text, tests, **parameters):
    reward = get("code", **{"timeout": 5.0} | parameters)
    return reward(prompts=[""], completions=[text], tests=[tests])[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (ADD, 1.0),
        (f"So:\n```python\n{ADD}```\nThat is it.", 1.0),
        (f"```\n{ADD}\n```", 1.0),
        (f"```python\ndef add(a, b): return 3\n```\nNo:\n```py\n{ADD}```", 1.0),
        (f"```python\n{ADD}", 1.0),  # cut off behind the program
        (f"```bash\nls\n```\n\n```python\n{ADD}```", 1.0),
        ("def add(a, b): return 3", 0.5),
        ("def sub(a, b): return a - b", 0.0),
        ("def add(a, b: return", 0.0),
        ("I do not know.", 0.0),
        ("", 0.0),
    ],
)
def test_asserts(text, value):
    assert graded(text, TESTS) == value


def test_all_or_nothing():
    assert graded("def add(a, b): return 3", TESTS, all_or_nothing=True) == 0.0
    assert graded(ADD, TESTS, all_or_nothing=True) == 1.0


# What a program does, and what a test of it may ask
PROGRAM = """
import math
from collections import Counter, namedtuple
from dataclasses import dataclass

TABLE = {"a": [1, (2, 3)]}
Point = namedtuple("Point", "x y")

class Stack:
    def __init__(self, *items): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __eq__(self, other): return self.items == other.items
    def __add__(self, other): return Stack(*self.items, *other.items)

class Empty(ValueError): pass

@dataclass
class Money:
    amount: "int"

def same(x): return x
def counted(text): return Counter(text)
def sort(items): items.sort()
def numbers():
    n = 0
    while True: yield n; n += 1
def apply(f, *items): return [f(item) for item in items]
def fail(x): raise Empty(x)
def quit(): import sys; sys.exit()
def point(): return Point(1, 2)
def area(r): return math.pi * r ** 2
def adder(n): return lambda m: n + m
"""


ASKED = (
        "for x in (1, 1.5, 'a', b'b', None, True, 2j, [1, (2, {3: {4}})], frozenset({5}), range(3)):\n"
        "    assert same(x) == x and type(same(x)) is type(x)",
        "assert same(10 ** 5000) == 10 ** 5000", "assert math.isclose(area(1), 3.14159265, rel_tol=1e-8)",
        "assert counted('aab') == {'a': 2, 'b': 1}", "assert point() == (1, 2) and point()[1] == 2",
        "items = [3, 1, 2]\nsort(items)\nassert items == [1, 2, 3]", "assert TABLE['a'][1] == (2, 3)",
        "s = Stack(1)\ns.push(2).push(3)\nassert s.pop() == 3 and len(s) == 2 and s.items == [1, 2]",
        "assert Stack(1) + Stack(2) == Stack(1, 2) and Stack(1) != Stack(2) and Stack(1)",
        "assert isinstance(Stack(), Stack) and not isinstance(Money(1), Stack) and not Stack()",
        "from itertools import islice\nassert list(islice(numbers(), 3)) == [0, 1, 2]",
        "assert apply(lambda x: x * 2, 1, 2) == [2, 4] and apply(str, 1) == ['1']",
        "try:\n    fail('x')\nexcept Empty as error:\n    assert str(error) == 'x'\nelse:\n    assert False",
        "try:\n    fail('x')\nexcept ValueError:\n    pass\nelse:\n    assert False",
        "assert Money(5).amount == 5 and str(Money(5)) == 'Money(amount=5)'", "assert adder(2)(3) == 5",
        "from fractions import Fraction\nassert same(Fraction(1, 3)) == Fraction(1, 3)",
        "def check(candidate):\n    assert candidate(1) == 1\ncheck(same)", "assert same(x=5) == 5",
)  # fmt: skip


def test_what_a_test_can_ask():
    limits = sandbox.Limits()
    assert sandbox.run_tests(PROGRAM, ASKED, limits) == [True] * len(ASKED)
    nothing = "def same(x): return 0\nadd = fail = sort = same"
    assert sandbox.run_tests(nothing, ASKED, limits) == [False] * len(ASKED)


def test_tests_share_a_namespace_and_only_asserts_count():
    tests = ["import math", "def twice(f, x):\n    return f(f(x))", "assert twice(inc, 1) == 3"]
    assert graded("def inc(x): return x + 1", tests) == 1.0
    assert graded("def inc(x): return x", tests) == 0.0


def test_a_test_that_cannot_be_asked_from_outside():
    assert graded("def f(x): return 1", ["assert f(object()) == 1"]) is None


PAIRS = [{"input": "1 2\n", "output": "3"}, {"input": "2 5\n", "output": "7\n"}]
SUM = "print(sum(map(int, input().split())))"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (SUM, 1.0), ("print(3)", 0.5), (f"```python\n{SUM}\n```", 1.0), (f"{SUM}\n1 / 0", 0.0),
        ("print('3 ')\nprint()", 0.5), ("", 0.0), (f"if __name__ == '__main__':\n    {SUM}", 1.0),
        (f"import threading\nthreading.Thread(target=lambda: {SUM}).start()", 1.0),
        (f"{SUM}\nimport sys\nsys.exit()", 1.0), (f"{SUM}\nimport sys\nsys.exit(1)", 0.0),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", 1.0),
    ],
)  # fmt: skip
def test_pairs(text, value):
    assert graded(text, PAIRS) == value


@pytest.mark.parametrize(
    "tests",
    [
        TESTS[0], [TESTS[0]], '["assert add(1, 2) == 3"]', [{"input": "", "output": "3"}],
        {"inputs": [""], "outputs": ["3"]}, '{"inputs": [""], "outputs": ["3"]}',
        {"input": "", "output": "3"},
    ],
)  # fmt: skip
def test_the_forms_of_tests(tests):
    assert graded(f"{ADD}\nprint(add(1, 2))", tests) == 1.0


@pytest.mark.parametrize(
    "tests",
    [
        None, [], "", [""], 5, [5], [None], {}, [{}], [{"input": "1"}], [{"input": 1, "output": 2}],
        ["import math"], ["assert ("], {"inputs": 1, "outputs": 2}, [TESTS[0], PAIRS[0]], "[1",
    ],
)  # fmt: skip
def test_rows_without_usable_tests(tests):
    assert graded(ADD, tests) is None


FORGERIES = {
    "exits": "import os\nos._exit(0)",
    "exits when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit": "def add(a, b): raise SystemExit(0)",
    "equal to everything": "class T:\n  __eq__ = lambda s, o: True\n  __hash__ = None\n"
    "def add(a, b): return T()",
    "a number equal to everything": "class T(int):\n  __eq__ = lambda s, o: True\n"
    "  __hash__ = None\ndef add(a, b): return T(7)",
    "not different from anything": "class T:\n  __ne__ = lambda s, o: False\n"
    "  __eq__ = lambda s, o: True\ndef add(a, b): return T()",
    "prints": "print('1' * 99, flush=True)\ndef add(a, b): return 7",
    "writes everywhere": "import os\nfor fd in range(64):\n  try: os.write(fd, b'11\\n')\n"
    "  except OSError: pass\ndef add(a, b): return 7",
    "changes builtins": "import builtins\nbuiltins.AssertionError = ValueError\n"
    "builtins.exec = builtins.compile = print\ndef add(a, b): return 7",
    "names of its own": "__builtins__ = {}\ndef AssertionError(): pass\ndef add(a, b): return 7",
    "changes modules": "import sys\nsys.modules.clear()\ndef add(a, b): return 7",
    "traces": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
    "def add(a, b): return 7",
    "changes what calls it": "import sys\ndef add(a, b):\n  f = sys._getframe()\n  while f:\n"
    "    for v in f.f_locals.values():\n      if isinstance(v, list): v.clear()\n"
    "    f = f.f_back\n  return 7",
    "looks for the tests": "import gc, glob\ndef add(a, b):\n"
    "  found = [o for o in gc.get_objects() if ''.join(reversed('dda tressa')) in str(o)[:9999]]\n"
    "  return 3 if found or glob.glob('**/test_*', recursive=True) else 7",
    "answers by itself": "import gc, io\nfor o in gc.get_objects():\n"
    "  if isinstance(o, io.BufferedWriter):\n    o.write(b'[\"names\", {}]\\n' * 99); o.flush()\n"
    "def add(a, b): return 7",
    "raises what a test cannot catch": "def add(a, b): raise BaseException",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "kills": "import os\nfor p in (-1, 1, os.getppid()):\n  try: os.kill(p, 9)\n"
    "  except OSError: pass\ndef add(a, b): return 7",
    "recursion": "def add(a, b): return add(a, b)",
    "contains itself": "def add(a, b):\n  x = []\n  x.append(x)\n  return x",
    "deep": "def add(a, b):\n  x = []\n  for _ in range(10 ** 5): x = [x]\n  return x",
    "too long": "def add(a, b): return 'x' * 10 ** 8",
    "fills the disk": "with open('x', 'wb') as f:\n  while True: f.write(b'x' * 10 ** 6)",
    "fills the files": "for i in range(10 ** 6): open(str(i), 'w').close()",
    "fills the memory": "x = []\nwhile True: x.append('x' * 10 ** 7)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_wrong_program_is_wrong(name):
    started = time.monotonic()
    assert graded(FORGERIES[name], TESTS, memory=128) == 0.0
    assert time.monotonic() - started < 5 + sandbox.GRACE


def test_a_difference_that_is_always_nothing():
    program = (
        "class T:\n"
        "  __sub__ = __rsub__ = lambda s, o: 0.0\n"
        "  __lt__ = __gt__ = __le__ = __ge__ = __contains__ = lambda s, o: True\n"
        "  __float__ = lambda s: 0.0\n"
        "def add(a, b): return T()\n"
        "def abs(x): return 0\n"
        "def round(x, n): return 3\n"
    )
    tests = [
        "assert abs(add(1, 2) - 3) < 1e-6", "assert abs(3 - add(1, 2)) < 1e-6", "assert 3 in add(1, 2)",
        "assert add(1, 2) <= 3 <= add(1, 2)", "import math\nassert math.isclose(add(1, 2), 3)",
        "assert round(add(1, 2), 2) == 3", "assert add(1, 2) in (3, 4)", "assert not add(1, 2) != 3",
    ]  # fmt: skip
    assert sandbox.run_tests(program, tests, sandbox.Limits()) == [False] * len(tests)
    possible = [test for test in tests if "3 in add" not in test]
    assert graded(ADD.replace("a + b", "a + b + 0.0"), possible) == 1.0


def test_a_program_that_ends_passes_no_test_that_catches_everything():
    test = "try:\n    add(1, 2)\nexcept BaseException:\n    pass\nassert True"
    assert graded(ADD, [test]) == 1.0
    assert graded(FORGERIES["exits when called"], [test]) == 0.0


ENDLESS = {
    "a loop": "while True: pass",
    "a loop when called": "def add(a, b):\n  while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "sleep, deaf": "import ctypes, signal, time\nctypes.CDLL(None).prctl(1, 0)\n"
    "for s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
    "time.sleep(60)",
    "forks": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "calls back for ever": "import gc\ndef add(a, b):\n  import builtins\n"
    "  [o for o in gc.get_objects() if type(o).__name__ == 'Pipe'][0].send(['call back', 0, []])\n"
    "  while True: pass",
}


def test_what_never_ends_is_ended():
    reward = get("code", timeout=1.0)
    started = time.monotonic()
    texts = list(ENDLESS.values())
    found = reward(prompts=texts, completions=texts, tests=[TESTS] * len(texts))
    assert found == [0.0] * len(texts)
    assert time.monotonic() - started < 12


def test_what_was_passed_before_the_end_counts():
    program = "def add(a, b):\n  while a < 0: pass\n  return a + b"
    assert graded(program, TESTS, timeout=1.0) == 0.5


def test_a_process_that_runs_away_is_ended():
    program = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    os._exit(0)
{ADD}"""
    started = time.monotonic()
    assert graded(program, TESTS) == 1.0
    assert time.monotonic() - started < 3


def test_wrong_parameters():
    for parameters, words in (
        ({"timeout": 0}, "timeout must be over 0 and memory 64 or more, found 0 and 512"),
        ({"memory": 1}, "found 5.0 and 1"),
        ({"isolation": "none"}, "isolation must be bubblewrap or process, found 'none'"),
    ):
        with pytest.raises(RecipeError, match="reward code: .*" + words):
            get("code", **parameters)


def test_the_program_of_a_completion():
    assert code.program_of("```python\na\n```\n```text\nb\n```\n") == "a\n"
    assert code.program_of("a = '```'") == "a = '```'"


def test_a_sandbox_that_cannot_be_started(monkeypatch):
    reward = get("code")
    monkeypatch.setattr(sandbox, "_walls", lambda *given: ("/no/bwrap",))
    with pytest.raises(TrainingError, match=r"the sandbox could not be started: .*no/bwrap"):
        reward(prompts=[""], completions=[ADD], tests=[TESTS])
