"""What a step of sft costs on a CPU by peers at their best, beside ours and TRL's.

    python -m tests.benchmarks.peers install FOLDER         an environment for each peer, 5 GB in all
    python -m tests.benchmarks.peers FOLDER --write         22M, five rounds
    python -m tests.benchmarks.peers FOLDER --peer axolotl --shape 135M --rounds 3

Every stack trains the same tokens with the same labels, in a process and on a thread of its own, in
turn in every round. What a peer is given is in its yaml. Seconds are the processor's; a ratio is that
of one round; said are the median over rounds, and the least and the most. `--write` puts the table into
docs/benchmarks.md.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import cpu
from tests.benchmarks.bare import versions
from tests.benchmarks.cpu_rows import SHAPES, tokens_of, write

HERE = Path(__file__).parent
PEERS = ("llamafactory", "axolotl")
PRECISIONS = ("bf16", "fp32")
STACKS = ("trl-best", "ours", "ours-fp32", "ours-bf16-base")
BESIDE = "ours"
HEADER = ("stack", "step s", f"times {BESIDE}'s", "first step s", "peak MB", "first loss")
QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}
"""Nobody is told that it runs."""


def interpreter(folder: Path, peer: str) -> Path:
    """Python of the environment of a peer.

    Raises:
        SystemExit: if there is none, with the command that makes it.
    """
    path = folder / peer / "bin" / "python"
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing; make it by: "
            f"python -m tests.benchmarks.peers install {folder} --peer {peer}"
        )
    return path


def install(folder: Path, peers: list[str]) -> None:
    """Make the environments, of exactly what is pinned."""
    for peer in peers:
        subprocess.run([sys.executable, "-m", "venv", str(folder / peer)], check=True)
        pip = [str(interpreter(folder, peer)), "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "-r", str(HERE / f"{peer}.txt")], check=True)


def ask(python: Path, *words: str, folder: Path) -> dict[str, Any]:
    """What `step` finds in a process of its own."""
    module = "tests.benchmarks.peers.step"
    return cpu.found_by(str(python), module, *words, folder=folder, **QUIET)


def check(bench: cpu.Bench, stack: str, found: dict[str, Any]) -> None:
    """That the work was the same, token for token.

    Raises:
        RuntimeError: if a step had others, rows of a pack saw each other, or other weights learnt.
    """
    assert bench.tokens is not None
    same = {
        "real": bench.tokens.real, "labelled": bench.tokens.labelled,
        "trained": SHAPES[bench.shape].lora(),
    }  # fmt: skip
    seen = {name: found[name] for name in same}
    if seen != same:
        raise RuntimeError(f"{stack} trained {seen} and not {same}")
    if found.get("leak", 0.0) > 1e-4:
        raise RuntimeError(f"{stack}: rows of a pack see each other, by {found['leak']:.2g}")


def measure(
    environments: Path, peers: list[str], shape: str, *, rounds: int = 5, steps: int = 3
) -> cpu.Bench:
    """Train by every stack, once in every round."""
    pythons = {peer: interpreter(environments, peer) for peer in peers}
    bench = cpu.Bench(shape)
    todo = [*STACKS, *(f"{peer}-{precision}" for peer in peers for precision in PRECISIONS)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = write(folder, SHAPES[shape], ["sft"], steps)["sft"]
        bench.tokens = tokens_of(rows, SHAPES[shape].batch)
        for number in range(rounds):
            for stack in todo if number % 2 else reversed(todo):
                peer, _, precision = stack.partition("-")
                if peer in pythons:
                    words = peer, place, shape, str(steps), precision
                    found = ask(pythons[peer], *words, folder=folder)
                else:
                    found = cpu.ask(shape, "sft", stack, str(steps), folder=folder)
                check(bench, stack, found)
                bench.rounds.setdefault(("sft", stack), []).append(found)
    return bench


def rows_of(bench: cpu.Bench) -> list[list[str]]:
    """The cells of the table, under HEADER, the fastest first."""

    def middle(stack: str, what: str) -> float:
        return statistics.median(bench.seen("sft", stack, what))

    stacks = sorted((stack for _, stack in bench.rounds), key=lambda stack: middle(stack, "step"))
    return [
        [
            stack, f"{middle(stack, 'step'):.3g}",
            cpu.spread(bench.ratios("sft", BESIDE, stack)),
            f"{middle(stack, 'first'):.1f}", f"{middle(stack, 'peak') / 1e6:,.0f}",
            f"{middle(stack, 'loss'):.4f}",
        ]
        for stack in stacks
    ]  # fmt: skip


def about(bench: cpu.Bench) -> str:
    """What was trained, by what, on what."""
    assert bench.tokens is not None
    peers = [found[0]["versions"] for found in bench.rounds.values() if "versions" in found[0]]
    count = len(next(iter(bench.rounds.values())))
    return (
        f"{bench.shape}, sft; {count} rounds; {cpu.processor()}, one thread. "
        f"{bench.tokens.real:,} tokens a step, {bench.tokens.labelled:,} of them labelled. "
        f"ours and trl: {versions()}; {'; '.join(dict.fromkeys(peers))}."
    )


def show(bench: cpu.Bench, console: Console | None = None) -> None:
    """Print the table."""
    table = Table(*HEADER)
    for row in rows_of(bench):
        table.add_row(*row)
    (console or Console(width=120)).print(about(bench), table, sep="\n", highlight=False)


def keep(bench: cpu.Bench, path: Path) -> None:
    """Put the table of this base into the page, in place of the one that it has of it."""
    cpu.put(path, f"peers {bench.shape}", about(bench), [list(HEADER), *rows_of(bench)])


def main(words: list[str] | None = None) -> None:
    """Install, or measure what the command line asks for."""
    asked = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    asked.add_argument("words", nargs="+", metavar="[install] FOLDER", help="of the environments")
    asked.add_argument("--peer", action="append", choices=PEERS)
    asked.add_argument("--shape", default="22M", choices=[*SHAPES])
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--steps", type=int, default=3, help="the first is not timed")
    asked.add_argument("--write", action="store_true")
    given = asked.parse_args(words)
    *command, place = given.words
    if command not in ([], ["install"]):
        asked.error(f"what is {' '.join(command)}?")
    folder, peers = Path(place).absolute(), given.peer or list(PEERS)
    if command:
        install(folder, peers)
        return
    bench = measure(folder, peers, given.shape, rounds=given.rounds, steps=given.steps)
    show(bench)
    if given.write:
        keep(bench, cpu.DOCS)


if __name__ == "__main__":
    main()
