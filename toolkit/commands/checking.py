"""`toolkit check`: what can be known of a recipe before it is run."""

import argparse
import json
import sys
from contextlib import redirect_stdout

from toolkit.commands.words import count, seconds
from toolkit.errors import ToolkitError
from toolkit.importing import import_at_once
from toolkit.recipe import Recipe

USAGE = (
    "toolkit check RECIPE [--keys] [--json] [--rows N] [--time] [--step] [--memory GIB]\n"
    "                     [--gpu NAME [--price PER_HOUR] [--num_devices N]] [--key value …]"
)


def flags(arguments: argparse.ArgumentParser) -> None:
    """What the command takes besides recipe keys."""
    arguments.add_argument("--keys", action="store_true")
    arguments.add_argument("--json", action="store_true", dest="as_json")
    arguments.add_argument("--rows", type=count, default=3, metavar="N")
    arguments.add_argument("--time", action="store_true")
    arguments.add_argument("--step", action="store_true")
    arguments.add_argument("--gpu", metavar="NAME")
    arguments.add_argument("--price", type=seconds, metavar="PER_HOUR")
    arguments.add_argument("--num_devices", type=count, default=1, metavar="N")
    arguments.add_argument("--memory", type=seconds, metavar="GIB")


def broken(error: ToolkitError) -> int:
    """Print the report of a recipe whose keys are wrong, as JSON; returns the exit code."""
    finding = {
        "subject": "keys", "level": "error", "line": str(error), "fix": "", "stage": "",
        "exit_code": error.exit_code,
    }  # fmt: skip
    print(json.dumps({"exit_code": error.exit_code, "findings": [finding]}, ensure_ascii=False))
    return error.exit_code


def check(recipe: Recipe, asked: argparse.Namespace) -> int:
    """Check a resolved recipe and print what was found; returns the exit code."""
    import_at_once("toolkit.preflight.checks")
    from toolkit.preflight import checks, page
    from toolkit.preflight.look import Options
    from toolkit.stages import terminal

    terminal.hide_library_bars()
    options = Options(
        gpu=asked.gpu, price=asked.price, devices=max(1, asked.num_devices), shown=asked.rows,
        memory=None if asked.memory is None else int(asked.memory * 2**30),
        time=asked.time, step=asked.step,
    )  # fmt: skip
    with redirect_stdout(sys.stderr):  # whatever a library or a reward prints is no part of it
        found = checks.check(recipe, options)
    if asked.as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False, default=str))
    else:
        page.show(found, terminal.console())
    return found.exit_code
