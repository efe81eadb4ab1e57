"""SIGTERM and SIGINT: while a stage trains they wait for the end of the step, elsewhere they do not.

Handlers belong to the main thread; in any other, signals do what they did before.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from toolkit.errors import Interrupted

EXIT = 128  # a shell's exit code of a command that a signal ended, less the signal's number
STOPPING = (
    "\n   {signal}: this step is finished and a checkpoint written, then the run stops; "
    "Ctrl-C (again) stops it at once\n"
)


class StopRequest:
    """What signals have asked for.

    Attributes:
        number: the first signal that came; 0 if none did.
    """

    def __init__(self):
        self.number = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; a later SIGINT stops at once.

        Raises:
            Interrupted: for that one.
        """
        if self.number and number == signal.SIGINT:
            raise Interrupted("interrupted again: stopped at once", EXIT + number)
        if not self.number:
            self.number = number
            say(STOPPING.format(signal=name_of(number)))


def name_of(number: int) -> str:
    """A signal's name, such as SIGTERM."""
    return signal.Signals(number).name


def say(line: str) -> None:
    """Write to standard output from within a handler, where a buffered write may not be."""
    if int(os.environ.get("RANK", "0")) == 0:
        with suppress(OSError, ValueError):  # a notebook has no file descriptor
            os.write(sys.stdout.fileno(), line.encode())


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Have SIGTERM end the block as SIGINT does: by an exception, so that its end is recorded."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"interrupted by {name_of(number)}", EXIT + number)

    with handlers([signal.SIGTERM], stop):
        yield


@contextmanager
def stopping_at_step_end() -> Iterator[StopRequest]:
    """Have both signals noted inside the block, for whoever ends it at the next step."""
    request = StopRequest()
    with handlers([signal.SIGTERM, signal.SIGINT], request.handle):
        yield request


@contextmanager
def handlers(numbers: Sequence[int], handler: Any) -> Iterator[None]:
    """Handle signals inside the block, and as before after it; one that is ignored stays ignored.

    Args:
        numbers: of the signals.
        handler: as of signal.signal. What is forked inside the block, such as a data worker, passes
            over SIGINT, which comes to every process of a terminal, and dies of the others.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        elif number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            found = signal.getsignal(number)
            if found not in (signal.SIG_IGN, None):  # None: set by other than Python
                before[number] = signal.signal(number, handle if callable(handler) else handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
