"""Runs in a fork of this process: everything is imported once, and one can be killed at any moment."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Fork:
    """A function that runs in a process of its own, which has its own group.

    Args:
        work: what is done; the exit code of an error in it is its own, or 1.
        log: where it prints.
    """

    def __init__(self, work: Callable[[], Any], log: Path):
        sys.stdout.flush()
        sys.stderr.flush()
        self.log = log
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self.child(work)

    def child(self, work: Callable[[], Any]) -> None:
        """What the new process does; it never returns."""
        code = 1
        try:
            os.setsid()
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has its own
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            work()
            code = 0
        except BaseException as error:
            code = getattr(error, "exit_code", code)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, minus the signal that ended it; None if it still runs after some seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.code is None:
            found, status = os.waitpid(self.pid, 0 if end is None else os.WNOHANG)
            if found:
                self.code = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() >= end:
                return None
            else:
                time.sleep(0.002)
        return self.code

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.wait(0) is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and all it has started, as a machine that loses power does."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()
