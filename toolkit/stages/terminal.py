"""What a person sees while a stage runs: headlines, notes, and one progress line.

On a terminal the progress line is redrawn; elsewhere (a log file, CI) it is a plain line now and
then. Only the first process of several prints.
"""

import json
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar as disable_loading_bar

from toolkit.stages.resources import peak_memory

WIDTH = 80  # what a log file and a narrow terminal can show
PLAIN_LINES = 20  # how many progress lines a run leaves in a log, at most


def hide_library_bars() -> None:
    """Leave the terminal to our own progress line; loading a base shows its bar to a person."""
    datasets.disable_progress_bars()
    if not sys.stderr.isatty():
        disable_loading_bar()


def console() -> Console:
    """The console of this process: standard output for the first, nothing for the others."""
    quiet = int(os.environ.get("RANK", "0")) != 0
    return Console(width=None if sys.stdout.isatty() else WIDTH, quiet=quiet, highlight=False)


def headline(stage: str, name: str, detail: str) -> None:
    """One line that opens a stage: what it is, and on what."""
    title = stage if stage == name else f"{stage} · {name}"
    console().print(f"\n[bold]━━ {title}[/bold] [dim]{detail}[/dim]", soft_wrap=True)


def note(line: str) -> None:
    """An indented line of what the user should know; words are wrapped, paths stay whole."""
    screen = console()
    wrapped = textwrap.wrap(
        line, screen.width - 1, initial_indent="   ", subsequent_indent="     ",
        break_long_words=False, break_on_hyphens=False, drop_whitespace=True,
    )  # fmt: skip
    screen.print("\n".join(wrapped), markup=False, soft_wrap=True)


def numbers(first: str, *more: str) -> None:
    """An indented line of numbers, less those in the middle that would make it more than one."""
    screen, parts = console(), [first, *filter(None, more)]
    while len(line := "   " + "  ".join(parts)) > screen.width and len(parts) > 2:
        del parts[-2]
    screen.print(line, markup=False, soft_wrap=True)


def command(word: str, line: str) -> None:
    """A line to paste, never broken, after a word that says what it does."""
    console().print(f"   [dim]{word:<6}[/dim] {escape(line)}", soft_wrap=True)


def lines(title: str, pasted: Sequence[str]) -> None:
    """Lines to paste, under what they are for; none is broken."""
    screen = console()
    screen.print(f"   [dim]{escape(title)}[/dim]", soft_wrap=True)
    for line in pasted:
        screen.print(f"     {escape(line)}", soft_wrap=True)


def interval(state: TrainerState) -> int:
    """Steps between two plain lines: few lines, and each with a loss that was just logged."""
    wanted = max(1, -(-state.max_steps // PLAIN_LINES))
    logged = int(state.logging_steps)
    return -(-wanted // logged) * logged if 0 < logged <= state.max_steps // 4 else wanted


def memory() -> str:
    """The most memory held so far, as a person says it."""
    return f"{peak_memory() / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def step_of(line: str) -> float:
    """The step of a line of the log; of one that a crash has cut off, one that never comes."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class ProgressLine(TrainerCallback):
    """One line of progress, and every logged value in `log.jsonl`.

    Args:
        log_path: where each log entry is appended as one JSON object.
    """

    def __init__(self, log_path: Path):
        self.log_path = log_path
        self.progress: Progress | None = None
        self.task: Any = None
        self.latest: dict[str, float | None] = {}
        self.tokens: tuple[float, float] | None = None  # when first counted, and how many
        self.rate = ""
        self.started = 0.0
        self.first_step = 0
        self.printed = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock and, on a terminal, the bar."""
        if not state.is_world_process_zero:
            return
        self.started, self.first_step, self.printed = time.monotonic(), state.global_step, 0
        self.forget(state.global_step)
        if not sys.stdout.isatty():
            return
        self.progress = Progress(
            TextColumn("  "),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TextColumn("[dim]{task.fields[speed]}[/dim]"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
        )
        self.progress.start()
        self.task = self.progress.add_task(
            "", total=state.max_steps, completed=state.global_step, values="", speed=""
        )

    def forget(self, step: int) -> None:
        """Drop what was logged after a step, from which training starts or goes on."""
        if self.log_path.is_file():
            lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if step_of(line) <= step] if step else []
            # a crash leaves the log as it was
            new = self.log_path.with_name(f".{self.log_path.name}.tmp")
            new.write_text("".join(kept), encoding="utf-8")
            new.replace(self.log_path)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the step before: only now has it been logged."""
        if not state.is_world_process_zero:
            return
        done = state.global_step - self.first_step
        if self.progress is not None:
            self.progress.update(
                self.task, completed=state.global_step, values=self.values(), speed=self.speed()
            )
        elif done - self.printed >= interval(state):
            self.printed = done
            left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
            step = f"step {state.global_step}/{state.max_steps}  {self.values()}"
            numbers(step, self.rate, memory(), f"{duration(left)} left")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append to `log.jsonl` and remember what the line shows."""
        if not state.is_world_process_zero or not logs:
            return
        entry = {"step": state.global_step, **logs}
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, default=float) + "\n")
        self.latest |= logs
        self.count(logs.get("num_tokens"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bar away and leave one line of what it ended with."""
        if not state.is_world_process_zero:
            return
        self.stop()
        elapsed = time.monotonic() - self.started
        done = f"{state.global_step} step(s) in {duration(elapsed)}  {self.values()}"
        numbers(done, self.rate, memory())

    def stop(self) -> None:
        """Take the bar away, also after an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def count(self, tokens: float | None) -> None:
        """Take down how many tokens were trained on since they were first counted."""
        if not tokens:
            return
        now = time.monotonic()
        if self.tokens is None or tokens < self.tokens[1]:
            self.tokens = (now, tokens)
        elif now > self.tokens[0]:
            self.rate = f"{(tokens - self.tokens[1]) / (now - self.tokens[0]):,.0f} tokens/s"

    def speed(self) -> str:
        """Tokens per second, where the trainer counts them, and the memory held at most."""
        return "  ".join(filter(None, [self.rate, memory()]))

    def values(self) -> str:
        """What the latest step says, in a few words; of rollouts, the loss says nothing."""
        shown = [
            ("reward", "reward"),
            ("completions/mean_length", "tokens"),
            ("kl", "KL"),
            ("value/explained_variance", "explained"),
        ]
        if "reward" not in self.latest:
            shown = [
                ("loss" if "loss" in self.latest else "train_loss", "loss"),
                ("eval_loss", "held-out"),
                ("mean_token_accuracy", "accuracy"),
                ("accuracy", "pairs right"),
                ("rewards/accuracies", "pairs right"),
            ]
        known = [(word, self.latest[key]) for key, word in shown if key in self.latest]
        # TRL logs None where a step had nothing to average: no answer scored, no return that varies
        return "  ".join(
            f"{word} {'–' if value is None else format(value, '.3f')}" for word, value in known
        )
