"""How a run is doing, and how it ended: `status.json`, and the traceback of a failure.

Both stand at the top of the run's folder. A process that was killed leaves "running" behind, with
its number, by which another can tell that it is gone.
"""

import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.artifacts.manifest import FAILURE, STATUS, write_json
from toolkit.errors import Interrupted, TrainingError
from toolkit.stages.processes import (
    is_first_process,
    lost_another,
    process_index,
    processes,
    waits,
)
from toolkit.stages.signals import EXIT, handlers

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
OTHER = "another process"
STEM = Path(FAILURE).stem
UNEXPECTED = 5  # of an error that is none of ours: training stopped


class RunRecord:
    """The record of one run.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.stage: str | None = None
        self.started = now()

    def begin(self, stage: str) -> None:
        """Note that a stage has begun, whose folder is this run's."""
        self.stage = stage
        self.forget()
        self.write(RUNNING)

    def forget(self) -> None:
        """Remove the traceback of an earlier failure; each process its own."""
        mine, number = process_index(), processes()
        for log in [self.log_of(mine), *(self.folder.glob(f"{STEM}-*.log") if not mine else ())]:
            of = log.stem.removeprefix(f"{STEM}-")
            if log == self.log_of(mine) or (of.isdecimal() and int(of) >= number):
                log.unlink(missing_ok=True)

    def log_of(self, number: int) -> Path:
        """Where a process writes its traceback."""
        return self.folder / (f"{STEM}-{number}.log" if number else FAILURE)

    def of_others(self) -> list[str]:
        """What ended other processes, one line each, as far as they could write it."""
        found = []
        for number in range(processes()):
            log = self.log_of(number)
            if number != process_index() and log.is_file():
                said = log.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
                if OTHER not in said:
                    found.append(f"process {number} stopped: {said.partition(' ')[2]}")
        return found

    def write(self, status: str, **more: object) -> None:
        """Replace `status.json`."""
        if not is_first_process():
            return
        about = {
            "status": status,
            "stage": self.stage,
            "started_at": self.started,
            "updated_at": now(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / STATUS, about | more)

    def end(self, error: BaseException) -> None:
        """Note what ended the run, and tell where its traceback is in a note of the exception."""
        if self.stage is None:
            return  # refused before it began: the folder is not there, or another's
        interrupted = isinstance(error, KeyboardInterrupt)
        code = getattr(error, "exit_code", EXIT + 2 if interrupted else UNEXPECTED)
        message = str(error) or "interrupted"
        kind = type(error).__name__
        about: dict[str, object] = {"exit_code": code, "error": {"kind": kind, "message": message}}
        # a full disk, or a folder that cannot be made, must not hide the error itself
        with suppress(OSError):
            if not interrupted:
                log = self.log(error)
                about["log"] = log.name
                error.add_note(f"the traceback is in {log}")
            self.write(INTERRUPTED if interrupted else FAILED, **about)

    def log(self, error: BaseException) -> Path:
        """Write the traceback; of several processes, each to its own file."""
        log = self.log_of(process_index())
        self.folder.mkdir(parents=True, exist_ok=True)
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        trace = "".join(traceback.format_exception(error))
        log.write_text(f"{now()} {said}\n{trace}", encoding="utf-8")
        return log


def now() -> str:
    """The time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def naming_the_first(record: RunRecord) -> Iterator[None]:
    """Where another process is gone or does not come, say so in place of what the transport says.

    Raises:
        TrainingError: with that process's own error, if it could write it.
    """
    try:
        yield
    except (Exception, Interrupted) as error:
        said = "; ".join(record.of_others())
        # where one has failed, the launcher interrupts the others
        if not lost_another(error) and not (said and isinstance(error, Interrupted)):
            raise
        raise TrainingError(
            said
            or f"{OTHER} stopped without a word (killed, as for lack of memory), or hangs: it did not "
            f"come within {waits():,.0f} s (ddp_timeout)"
        ) from error


@contextmanager
def recorded(folder: Path) -> Iterator[RunRecord]:
    """Record how the run inside the block is doing and how it ends."""
    record = RunRecord(folder)
    try:
        with naming_the_first(record):
            yield record
    except (Exception, KeyboardInterrupt) as error:
        with handlers([signal.SIGTERM], signal.SIG_IGN):  # the launcher ends whoever is left
            record.end(error)
        raise
    if record.stage is not None:
        record.write(FINISHED, exit_code=0)
