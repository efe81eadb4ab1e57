"""Runs in a fork of this process: everything is imported once, and one can be killed at any moment."""

import contextlib
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
        work: what is done; an error in it is its own exit code, or 1.
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
        with contextlib.suppress(OSError):  # whoever of the two comes first
            os.setpgid(self.pid, self.pid)

    def child(self, work: Callable[[], Any]) -> None:
        """What the new process does; it never returns."""
        code = 1
        try:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has its own
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            work()
            code = 0
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
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

    def wait_for(self, sign: Callable[[], bool]) -> bool:
        """Wait for a sign; False if it ends before."""
        while self.wait(0.0) is None:
            if sign():
                return True
            time.sleep(0.002)
        return False

    def send(self, number: int) -> None:
        """A signal to it and all it has started."""
        if self.code is None:
            os.killpg(self.pid, number)

    def kill(self) -> int | None:
        """End it and all it has started, as a machine that loses power does; its exit code."""
        self.send(signal.SIGKILL)
        return self.wait()
