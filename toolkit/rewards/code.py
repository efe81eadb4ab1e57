"""The reward for programs: the share of a row's tests that a completion's program passes."""

import ast
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from toolkit.errors import RecipeError
from toolkit.rewards.rows import Completion, column, from_json, texts
from toolkit.rewards.sandbox import BUBBLEWRAP, Limits, check_isolation, run_script, run_tests

BLOCK = re.compile(
    r"^[^\S\n]*```(?P<language>[^`\n]*)\n(?P<text>.*?)(?:^[^\S\n]*```[^\S\n]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
PYTHON = ("python", "py", "python3", "")
# Statements that pass whatever the program does
SETUP = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PAIRS = (("input", "output"), ("inputs", "outputs"))


@dataclass(frozen=True)
class Code:
    """The share of the row's tests that pass, from 0 to 1.

    The program is the completion's last Python block, or all of it if it has none. A row's tests
    are lines of Python (`assert add(1, 2) == 3`), which run one after another in one namespace, or
    `{input, output}` pairs, of which each runs the program as a script; they may stand as JSON.
    Programs run in a sandbox, see `toolkit.rewards.sandbox`; where there is none, this refuses.

    None where a row has no tests, or tests that cannot be run from outside the program.

    Args:
        column: the tests.
        all_or_nothing: 1 only if all of them pass, else 0.
        timeout: seconds for all asserts, or for one pair.
        memory: MiB that one process may use.
        isolation: "bubblewrap"; "process" where it is not and the programs may do what you can.
    """

    column: str = "tests"
    all_or_nothing: bool = False
    timeout: float = 5.0
    memory: int = 512
    isolation: str = BUBBLEWRAP
    __name__ = "code"

    def __post_init__(self):
        if self.timeout <= 0 or self.memory < 64:
            raise RecipeError(
                f"reward code: timeout must be over 0 and memory 64 or more, found {self.timeout} "
                f"and {self.memory}"
            )
        check_isolation(self._limits)

    @property
    def _limits(self) -> Limits:
        return Limits(float(self.timeout), self.memory * 2**20, isolation=self.isolation)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion; as many at a time as there are processors."""
        tests = column(self.column, columns, self.__name__)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun counts them
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // processes)) as pool:
            return list(pool.map(self._score, texts(completions), tests))

    def _score(self, text: str, given: Any) -> float | None:
        asserts, pairs = asserts_of(given), pairs_of(given)
        if asserts:
            verdicts = self._assert(program_of(text), asserts)
        elif pairs:
            verdicts = self._compare(program_of(text), pairs)
        else:
            return None
        if not verdicts or None in verdicts:
            return None
        return float(all(verdicts)) if self.all_or_nothing else sum(verdicts) / len(verdicts)

    def _assert(self, program: str, tests: Sequence[str]) -> list[bool]:
        found = run_tests(program, tests, self._limits)
        counted = [verdict for verdict, test in zip(found, tests, strict=True) if _asks(test)]
        return [] if None in counted else [bool(verdict) for verdict in counted]

    def _compare(self, program: str, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        verdicts: list[bool] = []
        for stdin, expected in pairs:
            ended = run_script(program, stdin, self._limits)
            printed = ended.output.decode("utf-8", "replace")
            verdicts.append(ended.code == 0 and _lines(printed) == _lines(expected))
            if self.all_or_nothing and not verdicts[-1]:
                break
        return verdicts


def program_of(text: str) -> str:
    """The program of a completion: its last block of Python, also one that is cut off, or all."""
    blocks = [
        found["text"]
        for found in BLOCK.finditer(text)
        if found["language"].strip().lower() in PYTHON
    ]
    return blocks[-1] if blocks else text


def asserts_of(given: Any) -> list[str]:
    """Tests that are Python; none if there is one that is not."""
    given = from_json(given)
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not all(isinstance(test, str) for test in given):
        return []
    tests = [test for test in given if test.strip()]
    return tests if any(map(_asks, tests)) else []


def _asks(test: str) -> bool:
    """Whether a test can fail by what the program does, so that it counts."""
    try:
        body = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(statement, SETUP) for statement in body)


def pairs_of(given: Any) -> list[tuple[str, str]]:
    """Tests that are pairs of input and output; none if there is one that is not."""
    given = from_json(given)
    for first, second in PAIRS:
        if isinstance(given, Mapping) and {first, second} <= given.keys():
            inputs, outputs = given[first], given[second]
            if isinstance(inputs, str) and isinstance(outputs, str):
                inputs, outputs = [inputs], [outputs]
            if not all(isinstance(each, Sequence) for each in (inputs, outputs)):
                return []
            given = [{first: i, second: o} for i, o in zip(inputs, outputs, strict=False)]
        if isinstance(given, Sequence) and not isinstance(given, str):
            rows = [each for each in given if isinstance(each, Mapping)]
            pairs = [(row.get(first), row.get(second)) for row in rows]
            found = [(i, o) for i, o in pairs if isinstance(i, str) and isinstance(o, str)]
            if found and len(found) == len(given):
                return found
    return []


def _lines(text: str) -> list[str]:
    """Lines as they are compared: without spaces at their ends, and empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
