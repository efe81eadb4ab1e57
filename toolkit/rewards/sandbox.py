"""Runs a completion's program, and a data set's tests, away from everything else.

A program runs under Python's own `-I -S` with an empty environment, in a process of its own. With
`isolation: bubblewrap`, that process is inside bubblewrap's walls: it sees a file system in memory
with nothing in it but the standard library and the system's libraries, which it cannot write to,
and one small folder for its own files; no network, no process and no user but its own; and no
capability, nor a way to another namespace. Limits bound its time, memory, disk, files and
processes, and all of its processes end with it. With `isolation: process`, there are the limits
alone.
"""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import psutil

from toolkit.errors import RecipeError, TrainingError
from toolkit.rewards.inside.enter import BOX, FAILED

BUBBLEWRAP, PROCESS = "bubblewrap", "process"
ISOLATIONS = (BUBBLEWRAP, PROCESS)
GRACE = 10.0  # seconds for a sandbox to be built and to end itself, on a busy machine
LONGEST_OUTPUT = 2**20  # bytes of what a program printed that are read
INSIDE = Path(__file__).parent / "inside"
SYSTEM = ("/usr", "/lib", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
WALLS = (
    "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL",
)  # fmt: skip
# With a user namespace of its own, in which no other can be made
MAPPED = ("--unshare-all", "--unshare-user", "--disable-userns")
# Root needs none, and gives up being root inside
UNMAPPED = (
    "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
    "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SYS_CHROOT",
)  # fmt: skip
# Users that nobody has, one per sandbox, so that one cannot use up the processes of another
USERS = itertools.cycle(range(1_500_000_000, 1_500_100_000))


@dataclass(frozen=True)
class Limits:
    """What a program can use.

    Attributes:
        seconds: wall-clock time; its processor time is bounded by a second more.
        memory: bytes of address space of one process.
        disk: bytes that it can write, and print.
        processes: processes and threads at a time; none but its own without bubblewrap, where
            another one could outlive it.
        isolation: "bubblewrap" or "process".
    """

    seconds: float = 5.0
    memory: int = 512 * 2**20
    disk: int = 16 * 2**20
    processes: int = 8
    isolation: str = BUBBLEWRAP


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit code; None if it was killed.
        output: what it printed, the first MiB of it.
    """

    code: int | None
    output: bytes


def run_script(program: str, stdin: str, limits: Limits) -> Ended:
    """Run a program as a script.

    Args:
        program: Python source.
        stdin: what it reads.
        limits: what it can use.

    Raises:
        TrainingError: if the sandbox cannot be built.
    """
    order = {"role": "script", "program": program, "input": stdin}
    with _started(order, limits) as running:
        return running.ended()


def run_tests(program: str, tests: Sequence[str], limits: Limits) -> list[bool | None]:
    """Run a program's tests, one after another, in one namespace.

    The program and its tests are in two sandboxes, with nothing between them but two pipes: the
    program answers calls, with plain data or with objects of its own, and never sees what a test
    expects, nor the verdict.

    Args:
        program: Python source.
        tests: Python source each: asserts that call what the program defines.
        limits: what each of the two can use.

    Returns:
        Whether each test passed; None where it needs what cannot go from one sandbox to the other.

    Raises:
        TrainingError: if a sandbox cannot be built.
    """
    to_program, from_tests = os.pipe()
    to_tests, from_program = os.pipe()
    answers = {"role": "answer", "program": program, "pipes": [to_program, from_program]}
    asks = {"role": "test", "tests": list(tests), "pipes": [to_tests, from_tests]}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_started(answers, limits))
            testing = stack.enter_context(_started(asks, limits))
        finally:
            for descriptor in (to_program, from_program, to_tests, from_tests):
                os.close(descriptor)
        signs = testing.ended().output.decode("ascii", "replace")
    meaning = {"1": True, "0": False, "?": None}
    verdicts = [meaning.get(sign, False) for sign in signs[: len(tests)]]
    return verdicts + [False] * (len(tests) - len(verdicts))


@dataclass
class Running:
    """A started sandbox.

    Attributes:
        process: what was started; the sandbox is its child, or itself.
        output: what it printed.
        errors: why it could not be built.
        seconds: after which it is ended.
    """

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]
    seconds: float

    def ended(self) -> Ended:
        """Wait until it ends, or its time is over."""
        try:
            code: int | None = self.process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        reason = _content(self.errors)
        # its own words, or those of bubblewrap, which has no exit code that a program has not
        if reason and (code == FAILED or reason.startswith(b"bwrap: ")):
            raise TrainingError(f"the sandbox could not be built: {_reason(reason)}")
        return Ended(code, _content(self.output))

    def kill(self) -> None:
        """End it, with every process in it."""
        if self.process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def _started(order: dict[str, Any], limits: Limits) -> Iterator[Running]:
    """A running sandbox, which ends with the block."""
    isolated = limits.isolation == BUBBLEWRAP
    mapped = isolated and os.geteuid() != 0
    with contextlib.ExitStack() as stack:
        stdin, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        folder = "" if isolated else stack.enter_context(_open_folder())
        order = order | {
            "isolated": isolated, "mapped": mapped, "user": next(USERS), "folder": folder,
            "seconds": limits.seconds, "memory": limits.memory, "disk": limits.disk,
            "processes": limits.processes if isolated else 0,
        }  # fmt: skip
        stdin.write(json.dumps(order).encode())
        stdin.seek(0)
        walls = _walls(mapped, limits.disk) if isolated else ()
        enter = str(INSIDE / "enter.py") if not isolated else "/inside/enter.py"
        python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", enter]
        try:
            process = subprocess.Popen(
                [*walls, *python],
                stdin=stdin, stdout=stdout, stderr=stderr, env={}, cwd="/",
                pass_fds=order.get("pipes", ()), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise TrainingError(f"the sandbox could not be started: {error}") from error
        # what is isolated ends itself in time, counted from when it was built
        seconds = limits.seconds + (GRACE if isolated else 0)
        running = Running(process, stdout, stderr, seconds)
        stack.callback(running.kill)
        yield running


def check_isolation(limits: Limits) -> None:
    """Check that a program can be run with these limits here, by running one.

    Raises:
        RecipeError: if it cannot, with what to write instead.
    """
    if limits.isolation not in ISOLATIONS:
        raise RecipeError(
            f"reward code: isolation must be {' or '.join(ISOLATIONS)}, found {limits.isolation!r}"
        )
    if reason := _why_not(limits.isolation):
        raise RecipeError(
            f"reward code: no isolation: {limits.isolation} here ({reason}): "
            f"{_instead(limits.isolation)}"
        )


def _instead(isolation: str) -> str:
    if isolation == PROCESS:
        return "run as a user other than root, on Linux or macOS"
    mend = (
        "let it make namespaces (Docker: --privileged; Ubuntu: sysctl -w "
        "kernel.apparmor_restrict_unprivileged_userns=0)"
        if shutil.which("bwrap")
        else "install it (apt-get install bubblewrap; 0.8 or newer, on Linux)"
    )
    return f"{mend}, or, if the programs may read and change whatever you can, write isolation: process"


@cache
def _why_not(isolation: str) -> str | None:
    """Why programs cannot be run here; None if they can."""
    if isolation == BUBBLEWRAP and (sys.platform != "linux" or not shutil.which("bwrap")):
        return "there is no bubblewrap"
    if os.name != "posix":
        return "there are no limits on processes"
    try:
        with _started(
            {"role": "script", "program": "print(6 * 7)", "input": ""},
            Limits(seconds=20.0, isolation=isolation),
        ) as running:
            ended = running.ended()
            if ended.output.strip() == b"42":
                return None
            return _reason(_content(running.errors)) or f"exit code {ended.code}"
    except TrainingError as error:
        return str(error).removeprefix("the sandbox could not be built: ")


@cache
def _walls(mapped: bool, disk: int) -> tuple[str, ...]:
    """The command that a program's Python is put behind.

    Args:
        mapped: whether there is no root to begin with.
        disk: how many bytes can be written.
    """
    found = [*_first_to_go(), shutil.which("bwrap") or "bwrap", *WALLS]
    found += MAPPED if mapped else UNMAPPED
    for root in ("",) if mapped else ("", BOX):
        for folder in _folders():
            if os.path.islink(folder):
                found += ["--symlink", os.readlink(folder), root + folder]
                continue
            for above in reversed(Path(root + folder).parents[:-1]):
                found += ["--perms", "0755", "--dir", str(above)]  # else root's alone
            found += ["--ro-bind", folder, root + folder]
        found += ["--perms", "0755", "--dir", f"{root}/dev"]
        found += ["--ro-bind", str(INSIDE), f"{root}/inside"]
        for device in DEVICES:
            found += ["--dev-bind", device, root + device]
        found += ["--perms", "1777", "--size", str(disk), "--tmpfs", f"{root}/tmp"]
    return (*found, "--remount-ro", "/", "--chdir", "/tmp", "--")


def _first_to_go() -> tuple[str, ...]:
    """Where memory runs out, the system ends this first."""
    choom = shutil.which("choom")  # of util-linux
    return (choom, "-n", "1000", "--") if choom else ()


@contextlib.contextmanager
def _open_folder() -> Iterator[str]:
    """A folder that any user can write to, for a program without a file system of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)
        yield folder


@cache
def _folders() -> tuple[str, ...]:
    """What a program needs for reading: the standard library, and the libraries that it loads."""
    found: list[str] = []
    for folder in (*SYSTEM, os.path.realpath(sys.base_prefix)):
        if os.path.isdir(folder) and not any(
            folder == known or folder.startswith(f"{known}/") for known in found
        ):
            found.append(folder)
    return tuple(found)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(LONGEST_OUTPUT)


def _reason(errors: bytes) -> str:
    return " ".join(errors.decode("utf-8", "replace").split())[-300:]
