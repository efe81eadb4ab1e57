"""What a step costs on a CPU, ours beside bare TRL's, on a randomly initialised base.

    python -m tests.benchmarks.cpu                       sft, reward, dpo, grpo and ppo at 22M
    python -m tests.benchmarks.cpu sft grpo --shape 135M --stack trl --stack ours --write

Every stack trains the same rows with the same arguments, in a process and on a thread of its own, in
turn in every round. Seconds are the processor's, which do not depend on what else the machine does.
A ratio is that of one round; said are the median over rounds, and the least and the most.
`--write` puts the table into docs/benchmarks.md.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.bare import versions
from tests.benchmarks.cpu_rows import COMPLETIONS, SHAPES, Shape, Tokens, tokens_of, useful, write
from tests.benchmarks.cpu_step import STACKS
from tests.benchmarks.scaling import FOUND
from tests.launch import ROOT, environment

DOCS = ROOT / "docs" / "benchmarks.md"
STAGES = ("sft", "reward", "dpo", "grpo", "ppo")
HEADER = (
    "stage", "stack", "step s", "x trl", "x trl-best", "first step s", "by the clock", "peak MB",
    "first loss", "of bf16 peak",
)  # fmt: skip


@dataclass
class Bench:
    """What every stack took, by stage and stack, a round after another.

    Attributes:
        shape: the base's name.
        rounds: what `cpu_step` found.
        tokens: of a step of sft, if it was trained.
        peak: operations a second of the fastest matrix product, by dtype.
    """

    shape: str
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    tokens: Tokens | None = None
    peak: dict[str, float] = field(default_factory=dict)

    def seen(self, stage: str, stack: str, what: str = "step") -> list[float]:
        """One number of each round; a step's is the median of those after the first.

        Raises:
            KeyError: if the stack did not train the stage.
        """
        name = {"step": "steps"}.get(what, what)
        found = [each[name] for each in self.rounds[stage, stack]]
        return [statistics.median(at) if isinstance(at, list) else at for at in found]

    def ratios(self, stage: str, stack: str, other: str, what: str = "step") -> list[float]:
        """How many times as much the other stack took, in each round."""
        pairs = zip(self.seen(stage, other, what), self.seen(stage, stack, what), strict=True)
        return [theirs / own for theirs, own in pairs]

    def gain(self, stage: str, stack: str, other: str, what: str = "step") -> float:
        """The median of these."""
        return statistics.median(self.ratios(stage, stack, other, what))

    def of_grpo(self, stack: str) -> list[float]:
        """How many steps of the stack's GRPO one of its PPO takes, in each round."""
        return [
            ppo / grpo
            for ppo, grpo in zip(self.seen("ppo", stack), self.seen("grpo", stack), strict=True)
        ]

    def share(self, stack: str) -> float | None:
        """The part of the core's bf16 peak that useful work of a step of sft comes to."""
        if self.tokens is None:
            return None
        work = useful(SHAPES[self.shape], self.tokens)
        return work / statistics.median(self.seen("sft", stack)) / self.peak["bfloat16"]


def ask(*words: str, folder: Path) -> dict[str, Any]:
    """What `cpu_step` finds in a process of its own."""
    return found_by(sys.executable, "tests.benchmarks.cpu_step", str(folder), *words, folder=folder)


def found_by(python: str, module: str, *words: str, folder: Path, **more: str) -> dict[str, Any]:
    """What a module finds in a process of its own.

    Args:
        python: the interpreter.
        module: of which a line begins with FOUND.
        *words: its command line.
        folder: for the cache.
        **more: of the environment.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
    """
    alone = environment() | {
        "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    } | more  # fmt: skip
    command = [python, "-m", module, *words]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False, cwd=ROOT)
    for line in done.stdout.splitlines():
        if line.startswith(FOUND):
            return json.loads(line.removeprefix(FOUND))
    raise RuntimeError(f"{' '.join(words)}: {(done.stdout + done.stderr)[-3000:]}")


def jobs(stages: list[str], stacks: list[str]) -> list[tuple[str, str]]:
    """What is trained in a round; PPO, which TRL has not, stands beside our own GRPO."""
    found = [
        (stage, stack)
        for stage in stages
        for stack in stacks
        if stage != "ppo" or not stack.startswith("trl")
    ]
    return found + [
        ("grpo", stack) for stage, stack in found if stage == "ppo" and ("grpo", stack) not in found
    ]


def measure(
    shape: str,
    stages: list[str],
    stacks: list[str] | None = None,
    *,
    rounds: int = 5,
    steps: int = 3,
) -> Bench:
    """Train every stage by every stack, all of them once in every round."""
    bench = Bench(shape)
    todo = jobs(stages, stacks or list(STACKS))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = write(folder, SHAPES[shape], sorted({stage for stage, _ in todo}), steps)
        if "sft" in rows:
            bench.tokens = tokens_of(rows["sft"], SHAPES[shape].batch)
        bench.peak = ask(shape, "peak", folder=folder)
        for number in range(rounds):
            for stage, stack in todo if number % 2 else reversed(todo):
                found = ask(shape, stage, stack, str(steps), folder=folder)
                bench.rounds.setdefault((stage, stack), []).append(found)
                if stage == "sft" and bench.tokens is not None:
                    seen = found["real"], found["labelled"]
                    assert seen == (bench.tokens.real, bench.tokens.labelled), (stack, seen)
                if stage not in ("reward", "ppo"):  # which train a head besides
                    assert found["trained"] == SHAPES[shape].lora(), (stage, stack)
    return bench


def spread(found: list[float]) -> str:
    """The median, with the least and the most of several."""
    if len(found) == 1:
        return f"{found[0]:.2f}"
    return f"{statistics.median(found):.2f} [{min(found):.2f}-{max(found):.2f}]"


def rows_of(bench: Bench) -> list[list[str]]:
    """The cells of the table, under HEADER."""
    found = []
    for stage in STAGES:
        for stack in STACKS:
            if (stage, stack) not in bench.rounds:
                continue

            def middle(what: str, at: tuple[str, str] = (stage, stack)) -> float:
                return statistics.median(bench.seen(*at, what))

            step = f"{middle('step'):.3g}"
            if stage == "grpo":
                sampled = middle("generation")
                step += f" ({sampled:.3g} + {middle('step') - sampled:.3g})"
            against = [
                spread(bench.ratios(stage, stack, other)) if (stage, other) in bench.rounds else ""
                for other in ("trl", "trl-best")
            ]
            if stage == "ppo":
                against[0] = f"{spread(bench.of_grpo(stack))} of grpo's s"
            share = bench.share(stack) if stage == "sft" else None
            found.append(
                [
                    stage, stack, step, *against, f"{middle('first'):.1f}",
                    f"{middle('first_wall'):.1f}", f"{middle('peak') / 1e6:,.0f}",
                    f"{middle('loss'):.4f}", "" if share is None else f"{share:.0%}",
                ]
            )  # fmt: skip
    return found


def about(bench: Bench) -> list[str]:
    """What was trained, on what."""
    shape: Shape = SHAPES[bench.shape]
    count = max(map(len, bench.rounds.values()))
    weights = f"{shape.body / 1e6:.3g}M in the body, {shape.hidden * shape.vocabulary / 1e6:.3g}M in the head"
    found = [
        f"{bench.shape} ({weights}); {count} rounds; {processor()}, one thread; {versions()}.",
        ", ".join(f"{name} {speed / 1e9:,.0f} GFLOP/s" for name, speed in bench.peak.items())
        + " by torch.mm at the body's shapes, 2048 rows.",
    ]
    if bench.tokens is not None:
        tokens = bench.tokens
        found.append(
            f"A step of sft: {shape.batch} rows, {tokens.real:,} tokens, {tokens.labelled:,} of them labelled, in "
            f"{tokens.padded:,} slots if padded ({tokens.real / tokens.padded:.0%} real); "
            f"{useful(shape, tokens) / 1e9:,.0f} GFLOP of useful work."
        )
    found.append(
        f"reward and dpo: {shape.batch // 2} pairs; grpo (sampling + update) and ppo: {COMPLETIONS} "
        f"completions of {shape.completion} tokens of a prompt of {shape.prompt}."
    )
    return found


def processor() -> str:
    """What the machine computes with, by its maker's name where it is known."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(bench: Bench, console: Console | None = None) -> None:
    """Print the table."""
    console = console or Console(width=150)
    table = Table(*HEADER)
    for row in rows_of(bench):
        table.add_row(*row)
    console.print("\n".join(about(bench)), table, sep="\n", highlight=False)


def keep(bench: Bench, path: Path) -> None:
    """Put the table of this base into the page, in place of the one that it has of it."""
    put(path, f"cpu {bench.shape}", " ".join(about(bench)), [list(HEADER), *rows_of(bench)])


def put(path: Path, name: str, about: str, rows: list[list[str]]) -> None:
    """Put a table into a page, in place of the one of that name, with the day and a line above it."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    day = time.strftime("%Y-%m-%d", time.gmtime())
    said = "\n".join([start, f"{day}: {about}", "", *lines, end])
    text = path.read_text(encoding="utf-8")
    if start in text:
        before, rest = text.split(start)
        text = before + said + rest.split(end)[1]
    else:
        text = f"{text.rstrip()}\n\n{said}\n"
    path.write_text(text, encoding="utf-8")


def main(words: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("stage", nargs="*", help=f"of {', '.join(STAGES)}")
    asked.add_argument("--shape", action="append", choices=[*SHAPES])
    asked.add_argument("--stack", action="append", choices=[*STACKS])
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--steps", type=int, default=3, help="the first is not timed")
    asked.add_argument("--write", action="store_true")
    given = asked.parse_args(words)
    if unknown := set(given.stage) - set(STAGES):
        asked.error(f"unknown stage {', '.join(sorted(unknown))}")
    for shape in given.shape or ("22M",):
        bench = measure(
            shape, given.stage or list(STAGES), given.stack, rounds=given.rounds, steps=given.steps
        )
        show(bench)
        if given.write:
            keep(bench, DOCS)


if __name__ == "__main__":
    main()
