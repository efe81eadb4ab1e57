"""The commands about what was made, and about this machine."""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from toolkit.commands.words import RUN, count, parser, seconds
from toolkit.importing import import_at_once


def verify(words: list[str]) -> int:
    """`toolkit verify DIR`."""
    arguments = parser("verify", "toolkit verify DIR", "Repeat the proof of what was trained.")
    arguments.add_argument("directory", metavar="DIR")
    parsed = arguments.parse_args(words)
    import_at_once("toolkit.verification.verify")
    from toolkit.verification import verify as proofs

    found: list[proofs.Finding] = []
    for finding in proofs.verify(parsed.directory):
        if not found or found[-1].directory != finding.directory:
            print(finding.directory)
        print(finding.line(), flush=True)
        found.append(finding)
    proofs.check_all_passed(found)
    return 0


def generate(words: list[str]) -> int:
    """`toolkit generate RUN --prompt TEXT | --dataset FILE --output FILE`."""
    usage = (
        "toolkit generate RUN --prompt TEXT … | --dataset FILE --output FILE.jsonl\n"
        "                        [--stage NAME] [--engine transformers|vllm] [--key value …]\n"
        "                        [--traces FOLDER [--examples N]]"
    )
    arguments = parser("generate", usage, "A finished run answers; keys as of stage rank.")
    arguments.add_argument("run", metavar="RUN", help=RUN)
    arguments.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a question; may be repeated"
    )
    for flag, metavar, about in (
        ("dataset", "FILE", "questions, a row each, as of stage rank"),
        ("output", "FILE", "where the answers go, as JSONL; a file that is there is gone on with"),
        ("stage", "NAME", "whose answers; the last stage that writes any"),
        ("traces", "FOLDER", "also keep the answers there, as Parquet"),
    ):
        arguments.add_argument(f"--{flag}", metavar=metavar, help=about)
    arguments.add_argument(
        "--examples", type=count, default=0, metavar="N", help="show so many of the nearest traces"
    )
    arguments.add_argument("--engine", default="transformers", help="transformers or vllm")
    parsed, rest = arguments.parse_known_args(words)
    import_at_once("toolkit.stages.generate")
    from toolkit.stages import generate as generating

    lines = generating.generate(
        parsed.run, rest, prompts=parsed.prompt, dataset=parsed.dataset, output=parsed.output,
        stage=parsed.stage, engine=parsed.engine, traces=parsed.traces, examples=parsed.examples,
    )  # fmt: skip
    if parsed.output is None:
        for line in lines:
            print(line["text"])
    return 0


def traces(words: list[str]) -> int:
    """`toolkit traces FOLDER [--search TEXT] [--limit N] [--json]`."""
    usage = "toolkit traces FOLDER [--search TEXT] [--limit N] [--json]"
    arguments = parser("traces", usage, "Look at kept answers, or for the nearest to a question.")
    arguments.add_argument("folder", metavar="FOLDER")
    arguments.add_argument("--search", metavar="TEXT")
    arguments.add_argument("--limit", type=count, default=10, metavar="N")
    arguments.add_argument("--json", action="store_true", dest="as_json")
    parsed = arguments.parse_args(words)
    from toolkit.inference.traces import Memory, Traces

    every = Traces(parsed.folder).read()
    found = every[: parsed.limit]
    if parsed.search is not None:
        found = [each for each, _ in Memory(every).nearest(parsed.search, parsed.limit)]
    if parsed.as_json:
        for each in found:
            print(json.dumps(asdict(each) | {"id": each.id}, ensure_ascii=False))
        return 0
    verdicts = {True: "right", False: "wrong", None: "not judged"}
    counts = Counter(verdicts[each.verdict] for each in every)
    print(", ".join([f"{len(every):,} traces", *(f"{n:,} {word}" for word, n in counts.items())]))
    for each in found:
        reward = "" if each.reward is None else f", reward {each.reward:g}"
        place = f"{each.method} of {each.model or 'a model'}, {each.tokens:,} tokens{reward}"
        print(f"\n{each.question}\n  {each.text}\n  ({verdicts[each.verdict]}, {place})")
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
    import_at_once("toolkit.stages.merge")
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
    merging = import_at_once("toolkit.stages.merge")
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(merging.merge(folder, Path(scratch) / "merged").output_dir)


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
