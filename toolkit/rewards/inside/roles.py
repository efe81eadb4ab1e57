"""The three things that a sandbox runs: a script, a program that answers, and its tests."""

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from answering import Answering
from asking import Asking
from values import Unsupported

PASSED, WRONG, UNSUPPORTED = b"1", b"0", b"?"


def script(order: dict[str, Any]) -> int:
    """Run a program as a script, with its input on standard input; the output is what it prints."""
    Path("input").write_text(order["input"], encoding="utf-8", errors="replace")
    os.dup2(os.open("input", os.O_RDONLY), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    path = _saved(order["program"], "program.py")
    sys.argv = [path]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        return 1
    return 0


def answer(order: dict[str, Any], nothing: int) -> int:
    """Import a program, and answer calls to it until the tests are over."""
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    reading, writing = order["pipes"]
    answering = Answering(reading, writing)
    try:
        program = _imported(_saved(order["program"], "program.py"), "program")
    except BaseException:
        answering.give_up()
        return 1
    answering.serve(vars(program))
    return 0


def test(order: dict[str, Any], nothing: int) -> int:
    """Run tests of a program that is elsewhere, and write one sign per test."""
    verdicts = os.dup(1)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    reading, writing = order["pipes"]
    asking = Asking(reading, writing)
    names = asking.names()
    if names is None:
        return 1
    for number, text in enumerate(order["tests"]):
        path = _saved(text, f"test_{number}.py")
        verdict = PASSED
        try:
            names.update(runpy.run_path(path, init_globals=names, run_name="test"))
        except Unsupported:
            verdict = UNSUPPORTED
        except BaseException:
            verdict = WRONG
        if asking.is_gone:  # a test may catch everything
            return 1
        os.write(verdicts, verdict)
    return 0


def _saved(text: str, name: str) -> str:
    path = Path(name).absolute()
    path.write_text(text, encoding="utf-8", errors="replace")
    return str(path)


def _imported(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
