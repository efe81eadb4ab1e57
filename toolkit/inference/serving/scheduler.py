"""Who is written when: one thread has the model, and every conversation takes turns of a few steps.

Requests of one adapter and one sampling go on as one batch, whenever they came; batches of others take
turns with it. Who comes first is begun first.
"""

import itertools
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toolkit.errors import ToolkitError
from toolkit.inference.engine import Prompt, Sampling
from toolkit.inference.sampling import TransformersEngine
from toolkit.inference.writing import Progress, Writing

Told = Callable[[int, Progress | Exception], None]


class Full(Exception):
    """There are as many requests as may wait."""


@dataclass(eq=False)
class Job:
    """The answers that one request asks for.

    Attributes:
        prompts: one for each.
        sampling: how tokens are chosen.
        tell: is told, from another thread, which answer, and what is new of it or what went wrong.
        is_cancelled: whether nobody waits for it any more.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling
    tell: Told
    is_cancelled: bool = False


class Scheduler:
    """Has requests written.

    Args:
        engine: writes; nobody else may use it meanwhile.
        at_once: how many answers are written at a time.
        waiting: how many more may wait.
    """

    def __init__(self, engine: TransformersEngine, *, at_once: int, waiting: int):
        self.engine, self.at_once, self.most = engine, at_once, at_once + waiting
        self.jobs: deque[Job] = deque()
        self.writings: deque[Writing] = deque()
        self.owners: dict[int, tuple[Job, int]] = {}
        self.changed = threading.Condition()
        self.is_closed = False
        self.numbers = itertools.count()
        self.thread = threading.Thread(target=self.work, name="engine", daemon=True)

    def start(self) -> None:
        """Let the thread work."""
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Have a job written.

        Raises:
            Full: if too much is asked for already.
        """
        with self.changed:
            if self.load + len(job.prompts) > self.most:
                raise Full
            self.jobs.append(job)
            self.changed.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up; what is written of it ends within a turn."""
        with self.changed:
            job.is_cancelled = True
            if job in self.jobs:
                self.jobs.remove(job)

    def close(self) -> None:
        """End the thread after its turn."""
        with self.changed:
            self.is_closed = True
            self.changed.notify()

    @property
    def load(self) -> int:
        """Answers that are written or waited for."""
        return len(self.owners) + sum(len(job.prompts) for job in self.jobs)

    def work(self) -> None:
        """Write until it is closed; the thread's own."""
        while self._wait():
            try:
                self._round()
            except Exception as error:  # what is on its way is lost, and nobody waits in vain
                self.writings.clear()
                self._fail(None, list(self.owners), error)

    def _round(self) -> None:
        """Begin what may begin, and give one batch its turn."""
        for writing in self._begun():
            self._turn(writing)
            self._place(writing)
        if self.writings:
            writing = self.writings.popleft()
            self._turn(writing)
            if writing.rows:
                self.writings.append(writing)

    def _wait(self) -> bool:
        """Wait until there is something to do; whether to go on."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_closed or self.jobs or self.writings)
            return not self.is_closed

    def _begun(self) -> list[Writing]:
        """Batches of those whose turn has come: in their order, as many as there is room for."""
        groups: dict[tuple[str | None, Sampling], list[int]] = {}
        with self.changed:
            while self.jobs and len(self.owners) + len(self.jobs[0].prompts) <= self.at_once:
                job = self.jobs.popleft()
                for index, prompt in enumerate(job.prompts):
                    row = next(self.numbers)
                    self.owners[row] = (job, index)
                    groups.setdefault((prompt.adapter, job.sampling), []).append(row)
        found = []
        for (_, sampling), rows in groups.items():
            prompts = [job.prompts[index] for job, index in map(self.owners.__getitem__, rows)]
            try:
                found.append(Writing(self.engine, prompts, sampling, numbers=rows))
            except Exception as error:
                self._fail(None, rows, error)
        return found

    def _turn(self, writing: Writing) -> None:
        """Some steps for a batch, and news of them to those who wait."""
        for row in list(writing.rows):
            if self.owners[row][0].is_cancelled:
                writing.drop(row)
                self._forget(row)
        rows = list(writing.rows)
        try:
            found = writing.advance() if rows else []
        except Exception as error:
            self._fail(writing, rows, error)
            return
        for progress in found:
            job, index = self.owners[progress.row]
            if progress.completion is not None:
                self._forget(progress.row)
            if not job.is_cancelled:
                job.tell(index, progress)

    def _place(self, writing: Writing) -> None:
        """Let a batch that has begun go on with one of its kind, or take turns with the others."""
        if not writing.rows:
            return
        for other in self.writings:
            if other.can_join(writing):
                other.join(writing)
                return
        self.writings.append(writing)

    def _fail(self, writing: Writing | None, rows: Sequence[int], error: Exception) -> None:
        """Tell all rows of a batch that it failed; the others go on."""
        if not isinstance(error, ToolkitError):
            traceback.print_exception(error, file=sys.stderr)
        if writing is not None:
            writing.give_up()
        for row in rows:
            job, index = self.owners[row]
            self._forget(row)
            if not job.is_cancelled:
                job.tell(index, error)

    def _forget(self, row: int) -> None:
        with self.changed:
            self.owners.pop(row)
