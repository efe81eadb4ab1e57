"""A call that is ended when its time is over, where it is: in this process, in this thread.

A reward may hold a model, a connection or the trainer's state, so it cannot be called in a process
of its own, as `toolkit.rewards.bounded` does with what is asked and answered in JSON. What is
raised inside it ends what waits, sleeps, runs Python or matches a pattern, and leaves no thread
behind. What catches that too ends this process, which would never go on. Only code in C that looks
at no signal and lets no other thread run is out of reach.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

TICK = 1.0  # seconds that are waited at a time
AGAIN = 1.0  # seconds between two tries; what is raised may be caught by a bare `except`
GRACE = 60.0  # seconds of trying
EXIT_CODE = 5  # of a TrainingError


class Cut(BaseException):
    """Raised inside a call whose time is over; `except Exception` does not catch it."""


class Watch:
    """Ends one call.

    Args:
        seconds: that it may take.
        name: of what is called, for the message.
        is_cut: whether something is raised inside it; else it must see to that itself.
    """

    def __init__(self, seconds: float, name: str, is_cut: bool):
        self.seconds, self.name, self.is_cut = seconds, name, is_cut
        self.caller = threading.get_ident()
        # the system lets only the main thread be woken from what it waits for
        self.by_signal = threading.current_thread() is threading.main_thread() and hasattr(
            signal, "pthread_kill"
        )
        self.due, self.is_finished = time.monotonic() + seconds, False
        self.ended, self.lock = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._wait, name=f"time limit of {name}", daemon=True)

    def start(self) -> None:
        """Begin to wait."""
        if self.by_signal and self.is_cut:
            # stays: without it, a late one would end this process
            signal.signal(signal.SIGVTALRM, _raise_if_due)
            # pattern matching lets no other thread run: a clock of processor time wakes it too
            signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds, AGAIN)
            WATCHES.append(self)
        self.thread.start()

    def _wait(self) -> None:
        left = self.seconds
        while left > 0:
            before = time.monotonic()
            if self.ended.wait(min(left, TICK)):
                return
            # a process that was stopped for an hour has not worked for one
            left -= min(time.monotonic() - before, 2 * TICK)
        last = time.monotonic() + GRACE
        while time.monotonic() < last:
            with self.lock:
                if self.is_finished:
                    return
                self._cut()
            if self.ended.wait(AGAIN):
                return
        print(  # noqa: T201
            f"error: reward {self.name} took over {self.seconds:g} s (reward_timeout) and cannot be "
            "interrupted: this process ends; training goes on from its last checkpoint",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(EXIT_CODE)

    def _cut(self) -> None:
        if self.is_cut and self.by_signal:
            signal.pthread_kill(self.caller, signal.SIGVTALRM)
        elif self.is_cut:
            raise_in(self.caller, Cut)

    def finish(self) -> None:
        """Raise nothing any more."""
        self.is_finished = True
        self.ended.set()
        with self.lock:
            if self.is_cut and not self.by_signal:
                raise_in(self.caller, None)  # what was to be raised, and was not yet
        if self in WATCHES:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            WATCHES.remove(self)
        self.thread.join()


WATCHES: list[Watch] = []
"""Of the main thread's calls, the innermost last."""


@contextlib.contextmanager
def time_limit(seconds: float | None, name: str, *, is_cut: bool = True) -> Iterator[None]:
    """Raise `Cut` inside the block when its time is over.

    Args:
        seconds: of wall-clock time; None for no limit.
        name: of the reward, for the message.
        is_cut: false where the block ends itself, and is only waited for.
    """
    if seconds is None:
        yield
        return
    watch = Watch(seconds, name, is_cut)
    try:
        watch.start()
        try:
            yield
        finally:
            watch.is_finished = True
    finally:
        watch.finish()


def _raise_if_due(number: int, frame: FrameType | None) -> None:
    if any(time.monotonic() >= watch.due and not watch.is_finished for watch in WATCHES):
        raise Cut


def raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in another thread, when it next runs Python; None takes it back."""
    given: Any = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), given)
