"""The command line: one short function per command, which parses, calls and prints."""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from toolkit import __version__, launching
from toolkit.commands import checking
from toolkit.commands.artefacts import compare, env, generate, merge, push, report, traces, verify
from toolkit.commands.overview import RUN_FLAGS, overview, stage_help
from toolkit.commands.use import chat, serve
from toolkit.commands.words import count, parser
from toolkit.errors import RecipeError, ToolkitError, TrainingError, UsageError
from toolkit.importing import import_at_once
from toolkit.quiet import quiet_libraries
from toolkit.recipe import (
    STAGES,
    Recipe,
    load_recipe,
    recipe_from_flags,
)
from toolkit.stages.signals import stopping_at_once


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or that of the error (see toolkit.errors)."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug, words = asks_for_traceback(given)
    try:
        with stopping_at_once():
            if launching.is_asked_for(words) and not {"-h", "--help"} & set(words):
                return launch(given, words)
            return dispatch(words)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return launching.tell_launcher(failed(error, debug=debug))


def failed(error: BaseException, *, debug: bool) -> int:
    """Tell what ended a command in one line, with where its traceback is; returns the exit code."""
    if debug:
        traceback.print_exc()
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, KeyboardInterrupt):
        if not rank:
            print(str(error) or "interrupted", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    said = " ".join(str(error).splitlines())
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    if not isinstance(error, ToolkitError):
        print(
            f"{shown(rank)}{type(error).__name__}: {said}{notes or written(error)}", file=sys.stderr
        )
        return TrainingError.exit_code if notes else ToolkitError.exit_code
    if not (rank and error.everywhere):
        print(f"{shown(rank)}{said}{notes}", file=sys.stderr)
    return error.exit_code


def shown(rank: int) -> str:
    """How the line of an error begins, which names the process unless it is the first."""
    return f"[process {rank}] error: " if rank else "error: "


def written(error: BaseException) -> str:
    """Put the traceback of an error that no run has recorded into a file; returns where."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="toolkit-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.writelines(traceback.format_exception(error))
    return f" (the traceback is in {log.name})"


def asks_for_traceback(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` stands by itself, and the words without it.

    With a value behind it, it is transformers' key.
    """
    alone = {
        at
        for at, word in enumerate(words)
        if word == "--debug" and (at + 1 == len(words) or words[at + 1].startswith("-"))
    }
    return bool(alone), [word for at, word in enumerate(words) if at not in alone]


def dispatch(words: list[str]) -> int:
    """Find the command that the first word names, and hand it the rest."""
    quiet_libraries()
    if not words or words[0] in {"-h", "--help", "help"}:
        print(overview())
        return 0
    if words[0] in {"-V", "--version"}:
        print(f"toolkit {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command in STAGES:
        return stage_command(command, rest)
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, [*COMMANDS, *STAGES], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; see toolkit --help"
        raise UsageError(f"unknown command {command!r}{hint}")
    return COMMANDS[command](rest)


def with_recipe(
    arguments: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, Recipe]:
    """The command's own flags, and the recipe with what overrides it.

    Raises:
        UsageError: if the recipe does not come before its overrides, whose values look like one.
    """
    parsed, rest = arguments.parse_known_args(words)
    if not rest or rest[0].startswith("-"):
        found = rest[0] if rest else "nothing"
        raise UsageError(f"a recipe must come first, found {found}: {arguments.usage}")
    return parsed, load_recipe(rest[0], rest[1:])


def stage_command(stage: str, words: list[str]) -> int:
    """`toolkit sft --model_name_or_path X --dataset_name my.jsonl …`."""
    if "-h" in words or "--help" in words:
        print(stage_help(stage))
        return 0
    parsed, rest = run_arguments(stage).parse_known_args(words)
    return execute(recipe_from_flags(stage, rest), parsed)


def launch(given: list[str], words: list[str]) -> int:
    """Any command that runs a recipe, with `--accelerate NAME`: on every process of a launcher.

    Args:
        given: the command line.
        words: the same without `--debug`.
    """
    command, rest = words[0], launching.split(words[1:])[1]
    if command not in ("run", *STAGES):
        raise UsageError(f"{launching.FLAG} goes with run and the stages, found {command!r}")
    arguments = run_arguments(command)
    if command == "run":  # a wrong key costs no start of many processes
        with_recipe(arguments, rest)
    else:
        recipe_from_flags(command, arguments.parse_known_args(rest)[1])
    return launching.launch(given)


def run_arguments(command: str, usage: str | None = None) -> argparse.ArgumentParser:
    """What running takes besides recipe keys."""
    arguments = parser(command, usage or f"toolkit {command} {RUN_FLAGS}", "Run it.")
    arguments.add_argument("--overwrite", action="store_true")
    arguments.add_argument("--fresh-optimizer", action="store_true")
    arguments.add_argument("--allow-change", action="append", default=[], metavar="KEY")
    return arguments


def run(words: list[str]) -> int:
    """`toolkit run RECIPE [--overwrite] [--key value] [--stage_name.key value]`."""
    arguments = run_arguments("run", f"toolkit run RECIPE [--until STAGE] {RUN_FLAGS}")
    arguments.add_argument("--until", metavar="STAGE")
    parsed, recipe = with_recipe(arguments, words)
    return execute(recipe, parsed, words)


def execute(recipe: Recipe, asked: argparse.Namespace, words: list[str] | None = None) -> int:
    """Run a resolved recipe; the keys were checked before torch is loaded."""
    from toolkit.artifacts import allowed

    recipe = allowed.asked_for(recipe, asked.allow_change, fresh_optimizer=asked.fresh_optimizer)
    pipeline = import_at_once("toolkit.pipeline")
    until = getattr(asked, "until", None)
    pipeline.run_recipe(recipe, overwrite=asked.overwrite, until=until, words=words)
    return 0


def check(words: list[str]) -> int:
    """`toolkit check RECIPE [--keys] [--json] [--time] [--step] [--gpu NAME --price P]`."""
    arguments = parser("check", checking.USAGE, "Say whether a recipe can work.")
    checking.flags(arguments)
    try:
        parsed, recipe = with_recipe(arguments, words)
    except RecipeError as error:
        if "--json" in words:
            return checking.broken(error)
        raise
    if not parsed.keys:
        return checking.check(recipe, parsed)
    stages = ", ".join(stage.name for stage in recipe.stages)
    print(f"{recipe.path}: every key is known and in range ({stages})")
    if any(stage.get("push_to_hub") for stage in recipe.stages):
        from toolkit.stages import pushing

        for line in pushing.checked(recipe):
            print(line)
    return 0


def inspect(words: list[str]) -> int:
    """`toolkit inspect RECIPE [--rows N] [--json]`."""
    usage = "toolkit inspect RECIPE [--rows N] [--json] [--key value …]"
    arguments = parser("inspect", usage, "Show which tokens are trained.")
    arguments.add_argument("--rows", type=count, metavar="N")
    arguments.add_argument("--json", action="store_true", dest="as_json")
    parsed, recipe = with_recipe(arguments, words)
    import_at_once("toolkit.models")  # before PEFT imports bitsandbytes in its own way
    import_at_once("toolkit.preflight.masks")
    from toolkit.preflight import masks

    if not parsed.as_json:
        masks.show_trained_tokens(recipe, rows=3 if parsed.rows is None else parsed.rows)
        return 0
    for found in masks.trained_tokens(recipe, rows=parsed.rows):
        print(json.dumps(found, ensure_ascii=False))
    return 0


def init(words: list[str]) -> int:
    """`toolkit init my.jsonl [--model_name_or_path X] [--output recipe.yaml]`."""
    usage = "toolkit init DATA [--model_name_or_path X] [--output RECIPE]"
    arguments = parser("init", usage, "Look at the data and the device; write a recipe.")
    arguments.add_argument("data")
    arguments.add_argument("--model_name_or_path")
    arguments.add_argument("--output")
    parsed = arguments.parse_args(words)
    from toolkit.first_recipe import write_first_recipe

    path = write_first_recipe(
        parsed.data, output=parsed.output, model_name_or_path=parsed.model_name_or_path
    )
    print(f"wrote {path}\n\n  toolkit inspect {path}    what is trained\n  toolkit run {path}")
    return 0


COMMANDS = {
    "run": run,
    "check": check,
    "inspect": inspect,
    "init": init,
    "report": report,
    "compare": compare,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "traces": traces,
    "verify": verify,
    "merge": merge,
    "push": push,
    "env": env,
}
