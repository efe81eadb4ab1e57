"""One line of progress while a model answers: a bar on a terminal, a plain line now and then else."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from toolkit.data.sequence_report import readable
from toolkit.stages.processes import processes
from toolkit.stages.terminal import PLAIN_LINES, console, note

PLAIN_SECONDS = 5  # between two plain lines, at least


class ExamProgress:
    """Shows how many completions a model has made, and how fast, inside a `with` block.

    Args:
        model: what is examined, as `of` names it, or the reward that scores.
        total: how many completions this process makes.
        what: what is made: "completions" or "scores".
    """

    def __init__(self, model: str, total: int, what: str = "completions"):
        self.model = model
        self.total = total
        self.what = what
        self.done = 0
        self.tokens = 0
        self.bar: Progress | None = None

    def __enter__(self) -> "ExamProgress":
        self.started = self.printed_at = time.monotonic()
        self.printed = 0
        if sys.stdout.isatty():
            self.bar = Progress(
                TextColumn("   {task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn(f"{self.what}  {{task.fields[speed]}}"),
                TimeRemainingColumn(),
                console=console(),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.model, total=self.total, speed="")
        return self

    def advance(self, tokens: int) -> None:
        """Count one more.

        Args:
            tokens: how many it has.
        """
        self.done += 1
        self.tokens += tokens
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, speed=self.speed(now))
        elif (
            self.done - self.printed >= self.total / PLAIN_LINES
            and now - self.printed_at >= PLAIN_SECONDS
            and self.done < self.total
        ):
            self.printed, self.printed_at = self.done, now
            left = (now - self.started) / self.done * (self.total - self.done)
            note(
                f"{self.model}: {self.done:,}/{self.total:,} {self.what}  {self.speed(now)}  {left:.0f} s left"
            )

    def speed(self, now: float) -> str:
        """Tokens per second so far."""
        return f"{readable(round(self.tokens / max(now - self.started, 1e-3)))} tokens/s"

    def __exit__(self, kind: Any, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
        if kind is None:
            now = time.monotonic()
            share = f", this process's share of {processes()}" if processes() > 1 else ""
            note(
                f"{self.model}: {self.done:,} {self.what} in {now - self.started:.0f} s  "
                f"{self.speed(now)}{share}"
            )
