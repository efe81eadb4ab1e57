"""How a run is doing, and how it ended: `status.json`, and the traceback of a failure.

Both stand at the top of the run's folder. A process that was killed leaves "running" behind, with
its number, by which another can tell that it is gone.
"""

import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.artifacts.manifest import FAILURE, STATUS, write_json
from toolkit.stages.processes import is_first_process, process_index
from toolkit.stages.signals import EXIT

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
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
        self.write(RUNNING)

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
        number = process_index()
        file = Path(FAILURE)
        log = self.folder / (f"{file.stem}-{number}{file.suffix}" if number else FAILURE)
        self.folder.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{now()}\n{''.join(traceback.format_exception(error))}", encoding="utf-8")
        return log


def now() -> str:
    """The time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def recorded(folder: Path) -> Iterator[RunRecord]:
    """Record how the run inside the block is doing and how it ends."""
    record = RunRecord(folder)
    try:
        yield record
    except (Exception, KeyboardInterrupt) as error:
        record.end(error)
        raise
    if record.stage is not None:
        record.write(FINISHED, exit_code=0)
        for log in folder.glob(f"{Path(FAILURE).stem}*.log") if is_first_process() else ():
            log.unlink()  # of an earlier run that failed
