"""Calls that may never end, in a process of their own that is killed when its time is over.

SymPy and pattern matching can be sent into years of work by a short text, inside C code that no
signal handler and no thread can interrupt. What they are asked, and answer, is JSON.
"""

import atexit
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from toolkit.errors import TrainingError

START_SECONDS = 120  # importing SymPy from a cold network disk
PATIENCE = 10  # wall-clock time per processor time: a machine may be busy with other things
MEMORY = 4 * 2**30  # bytes of address space
READY = "ready"


class Bounded:
    """A function that runs in a process of its own, one call at a time, from any thread.

    The process starts with the first call, and again with the first after it was killed; it ends
    with the one that started it.

    Args:
        function: "package.module:function"; takes and returns what JSON can say.
        seconds: of processor time that one call may take.
        loads: the modules that it needs, loaded before the clock runs.
    """

    def __init__(self, function: str, seconds: float, loads: Sequence[str] = ()):
        self.function = function
        self.seconds = seconds
        self.loads = loads
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        atexit.register(self._stop)

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns.

        Raises:
            TimeoutError: if the call took too long, or more memory than there is.
            TrainingError: if the process cannot be started.
        """
        with self.lock:
            line = ""
            try:
                line = self._answer(arguments)
            finally:
                # also where the caller is cut while it waits: the next would get its answer
                if not line:
                    self._stop()
        if not line:
            raise TimeoutError(f"{self.function} took over {self.seconds} s")
        return json.loads(line)

    def _answer(self, arguments: Any) -> str:
        """The line that answers a call; an empty one if none comes."""
        # a fork inherits the pipes of its parent's process, but not the thread that reads them
        if self.process is None or self.owner != os.getpid():
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([self.seconds, arguments]) + "\n")
            self.process.stdin.flush()
            return self.lines.get(timeout=PATIENCE * self.seconds)
        except (queue.Empty, OSError):
            return ""

    def _start(self) -> None:
        home = str(Path(__file__).resolve().parents[2])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.function, *self.loads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C in a terminal is for the run, which ends its step first
        )
        self.owner = os.getpid()
        self.lines = queue.SimpleQueue()
        threading.Thread(
            target=_pass_on, args=(self.process.stdout, self.lines), daemon=True
        ).start()
        try:
            started = self.lines.get(timeout=START_SECONDS).strip()
        except queue.Empty:
            started = ""
        if started != READY:
            raise TrainingError(
                f"the process that runs {self.function} did not start; see what "
                f"`{sys.executable} -m {__name__} {self.function}` says"
            )

    def _stop(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        self.process = None


def _pass_on(lines: IO[str], into: queue.SimpleQueue[str]) -> None:
    """Hand on every line, and an empty one at the end."""
    for line in lines:
        into.put(line)
    into.put("")
    lines.close()


def serve(name: str, *loads: str) -> None:
    """Answer calls from standard input until it ends."""
    for load in loads:
        importlib.import_module(load)
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    _limit_memory()
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        seconds, arguments = json.loads(line)
        # ends this process, even inside C code; where there is no such timer, its owner does
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = json.dumps(function(*arguments))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, file=answers, flush=True)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    serve(*sys.argv[1:])
