"""The command line: one short function per command, which parses, calls and prints."""

import argparse
import importlib
import json
import os
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from toolkit import __version__
from toolkit.errors import ToolkitError, TrainingError, UsageError
from toolkit.quiet import quiet_libraries
from toolkit.recipe import (
    STAGES,
    Recipe,
    describe,
    load_recipe,
    recipe_from_flags,
)

RUN_FLAGS = "[--overwrite] [--allow-change KEY] [--fresh-optimizer] [--debug] [--key value …]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or that of the error (see toolkit.errors)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug, words = asks_for_traceback(words)
    try:
        return dispatch(words)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return failed(error, debug=debug)


def failed(error: BaseException, *, debug: bool) -> int:
    """Tell what ended a command in one line, with where its traceback is; returns the exit code."""
    if debug:
        traceback.print_exc()
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, KeyboardInterrupt):
        if not rank:
            print(str(error) or "interrupted", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    if not isinstance(error, ToolkitError):
        said = " ".join(str(error).split())
        print(
            f"{shown(rank)}{type(error).__name__}: {said}{notes or written(error)}", file=sys.stderr
        )
        return TrainingError.exit_code if notes else ToolkitError.exit_code
    if not (rank and error.everywhere):
        print(f"{shown(rank)}{error}{notes}", file=sys.stderr)
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


def overview() -> str:
    """What `toolkit --help` prints."""
    stages = "|".join(STAGES)
    lines = [
        "Post-training on the Hugging Face stack: one frozen base, LoRA adapters, one recipe.",
        "",
        f"  toolkit run RECIPE {RUN_FLAGS}",
        "                            one stage or a pipeline: skip what is finished, go on with",
        "                            what was interrupted",
        f"  toolkit {stages} [--key value …]",
        "                            the same without a file; --help lists the keys",
        "  toolkit init FILE         look at the data and the device, write a recipe",
        "  toolkit check --keys RECIPE",
        "                            is every key, type and range right?",
        "  toolkit inspect RECIPE [--rows N] [--json]",
        "                            what exactly is trained: the tokens, coloured",
        "  toolkit report RUN        what a run did, as one page: report.html, report.md",
        "  toolkit compare A B …     runs or seeds side by side, with intervals",
        "  toolkit verify DIR        is what was saved what was trained? the proof, once more",
        "  toolkit merge DIR --output OUT",
        "                            an adapter inside its base, as one whole model",
        "  toolkit push DIR NAMESPACE/NAME [--merged] [--no-private] [--dry-run]",
        "                            to the Hub: what was trained, its card, no secrets",
        "  toolkit env               versions and devices, for a bug report",
        "",
        "  accelerate launch --config_file accelerate_configs/ddp.yaml -m toolkit run RECIPE",
        "                            the same on many devices",
        "",
        "Exit codes: 0 done, 2 usage, 3 recipe, 4 data, 5 training, 6 Hub, 130 and 143 signals.",
    ]
    return "\n".join(lines)


def parser(command: str, usage: str, about: str) -> argparse.ArgumentParser:
    """An argument parser that never guesses an abbreviated flag."""
    return argparse.ArgumentParser(
        prog=f"toolkit {command}", usage=usage, description=about, allow_abbrev=False
    )


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


def run_arguments(command: str, usage: str | None = None) -> argparse.ArgumentParser:
    """What running takes besides recipe keys."""
    arguments = parser(command, usage or f"toolkit {command} {RUN_FLAGS}", "Run it.")
    arguments.add_argument("--overwrite", action="store_true")
    arguments.add_argument("--fresh-optimizer", action="store_true")
    arguments.add_argument("--allow-change", action="append", default=[], metavar="KEY")
    return arguments


def stage_help(stage: str) -> str:
    """Every key of a stage with its type, default and meaning, as TRL documents it."""
    lines = [f"toolkit {stage} {RUN_FLAGS}", ""]
    for key in describe(stage):
        default = "" if key.default is None else f" = {key.default}"
        lines.append(f"  --{key.name} ({key.annotation}){default}")
        lines += textwrap.wrap(
            key.help.replace("%%", "%"), 76, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return "\n".join(lines)


def run(words: list[str]) -> int:
    """`toolkit run RECIPE [--overwrite] [--key value] [--stage_name.key value]`."""
    arguments = run_arguments("run", f"toolkit run RECIPE {RUN_FLAGS}")
    parsed, recipe = with_recipe(arguments, words)
    return execute(recipe, parsed)


def execute(recipe: Recipe, asked: argparse.Namespace) -> int:
    """Run a resolved recipe; the keys were checked before torch is loaded."""
    from toolkit.artifacts import allowed

    recipe = allowed.asked_for(recipe, asked.allow_change, fresh_optimizer=asked.fresh_optimizer)
    from toolkit import pipeline

    pipeline.run_recipe(recipe, overwrite=asked.overwrite)
    return 0


def check(words: list[str]) -> int:
    """`toolkit check --keys RECIPE`."""
    usage = "toolkit check --keys RECIPE [--key value …]"
    arguments = parser("check", usage, "Check a recipe's keys.")
    arguments.add_argument("--keys", action="store_true", required=True)
    _, recipe = with_recipe(arguments, words)
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
    from toolkit import preflight

    if not parsed.as_json:
        preflight.show_trained_tokens(recipe, rows=3 if parsed.rows is None else parsed.rows)
        return 0
    for found in preflight.trained_tokens(recipe, rows=parsed.rows):
        print(json.dumps(found, ensure_ascii=False))
    return 0


def count(word: str) -> int:
    """A number of things, from 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {word!r}")
    return int(word)


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


def verify(words: list[str]) -> int:
    """`toolkit verify DIR`."""
    arguments = parser("verify", "toolkit verify DIR", "Repeat the proof of what was trained.")
    arguments.add_argument("directory", metavar="DIR")
    parsed = arguments.parse_args(words)
    from toolkit.verification import verify as proofs

    found: list[proofs.Finding] = []
    for finding in proofs.verify(parsed.directory):
        if not found or found[-1].directory != finding.directory:
            print(finding.directory)
        print(finding.line(), flush=True)
        found.append(finding)
    proofs.check_all_passed(found)
    return 0


def merge(words: list[str]) -> int:
    """`toolkit merge DIR --output OUT [--dtype float32] [--overwrite]`."""
    usage = (
        "toolkit merge DIR --output OUT [--dtype auto|bfloat16|float16|float32]\n"
        "                     [--model_name_or_path BASE] [--max_shard_size 5GB] [--overwrite]"
    )
    arguments = parser("merge", usage, "Merge an adapter into its base, as one whole model.")
    arguments.add_argument("directory")
    arguments.add_argument("--output", required=True)
    arguments.add_argument("--dtype", default="auto")
    arguments.add_argument("--model_name_or_path")
    arguments.add_argument("--max_shard_size", default="5GB")
    arguments.add_argument("--overwrite", action="store_true")
    parsed = vars(arguments.parse_args(words))
    from toolkit.stages.merge import merge as merge_adapter

    done = merge_adapter(parsed.pop("directory"), **parsed)
    print(f"merged: {done.output_dir}")
    return 0


def push(words: list[str]) -> int:
    """`toolkit push DIR REPO [--private --merged --revision R --dry-run --timeout SECONDS]`."""
    usage = "toolkit push DIR NAMESPACE/NAME [--no-private] [--merged] [--revision R] [--dry-run]"
    arguments = parser("push", usage, "Push what was trained to the Hub, with its card.")
    arguments.add_argument("folder", metavar="DIR")
    arguments.add_argument("repo", metavar="NAMESPACE/NAME")
    arguments.add_argument("--private", action=argparse.BooleanOptionalAction, default=True)
    arguments.add_argument("--merged", action="store_true", help="the adapter inside its base")
    arguments.add_argument("--revision", help="the branch; made where there is none")
    arguments.add_argument("--dry-run", action="store_true", help="show it, and change nothing")
    arguments.add_argument("--timeout", type=seconds, dest="seconds", metavar="SECONDS")
    arguments.add_argument("--share-samples", action="store_true", help="name what is private")
    parsed = arguments.parse_args(words)
    from toolkit.artifacts import hub

    with merged_copy(parsed.folder) if parsed.merged else nullcontext(parsed.folder) as folder:
        done = hub.push(
            folder, parsed.repo, private=parsed.private, revision=parsed.revision,
            dry_run=parsed.dry_run, seconds=parsed.seconds, trained=parsed.folder,
            share_samples=parsed.share_samples,
            tell=lambda line: print(f"  {line}", file=sys.stderr),
        )  # fmt: skip
    for name, size in done.files.items():
        print(f"{size:>14,}  {name}")
    for line in done.notes:
        print(f"  {line}")
    ended = "pushed" if done.made else "the Hub holds it already, so there is no new commit"
    print(f"{'a dry run: nothing is pushed' if parsed.dry_run else ended}: {done.url}")
    return 0


@contextmanager
def merged_copy(folder: str) -> Iterator[Path]:
    """An adapter inside its base, in a folder that is there as long as the block."""
    merging = importlib.import_module("toolkit.stages.merge")
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(merging.merge(folder, Path(scratch) / "merged").output_dir)


def seconds(word: str) -> float:
    """A length of time that is longer than nothing."""
    if not word.replace(".", "", 1).isdecimal() or float(word) == 0:
        raise argparse.ArgumentTypeError(f"expected seconds, found {word!r}")
    return float(word)


def report(words: list[str]) -> int:
    """`toolkit report RUN [--output FOLDER]`."""
    from toolkit.report import commands

    return commands.report(parser("report", commands.REPORT, "What a run did, as a page."), words)


def compare(words: list[str]) -> int:
    """`toolkit compare A B … [--output FILE.html|FILE.md]`."""
    from toolkit.report import commands

    return commands.compare(parser("compare", commands.COMPARE, "Runs side by side."), words)


def env(words: list[str]) -> int:
    """`toolkit env`."""
    parser("env", "toolkit env", "Versions and devices.").parse_args(words)
    from toolkit import environment

    for name, value in environment.describe():
        print(f"{name:<16}{value}")
    return 0


COMMANDS = {
    "run": run,
    "check": check,
    "inspect": inspect,
    "init": init,
    "report": report,
    "compare": compare,
    "verify": verify,
    "merge": merge,
    "push": push,
    "env": env,
}
