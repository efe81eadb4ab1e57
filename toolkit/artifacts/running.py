"""One run in a folder at a time: a lock that dies with its process, and a sign of life for others."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from toolkit.artifacts.manifest import RUNNING
from toolkit.errors import RecipeError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

BEAT_S = 10.0
DEAD_S = 120.0
"""A run on another machine that has given no sign of life for so long is dead."""
CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
MINE: set[Path] = set()  # a lock of the operating system does not keep out its own process


@contextmanager
def only_run(folder: Path, tell: Callable[[str], Any]) -> Iterator[None]:
    """Hold a folder while the block runs.

    Args:
        folder: is made if it is not there.
        tell: called with one line where the file system cannot lock, or a dead run is followed.

    Raises:
        RecipeError: if another run holds it, saying which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / RUNNING
    if path in MINE:
        raise RecipeError(
            f"{folder} is in use by another run of this process; give another output_dir"
        )
    file, before = taken(path, tell)
    if before is not None:
        tell(
            f"the run before this one in {folder} ended without a word (process {before.get('pid')} "
            f"on {before.get('host')})"
        )
    MINE.add(path)
    ended = threading.Event()
    beats = threading.Thread(target=beat, args=(file, ended), daemon=True)
    try:
        write(file)
        beats.start()
        yield
    finally:
        ended.set()
        if beats.ident is not None:
            beats.join()
        MINE.discard(path)
        path.unlink(missing_ok=True)  # before it is unlocked: nobody else's can be removed
        os.close(file)


def taken(path: Path, tell: Callable[[str], Any]) -> tuple[int, dict[str, Any] | None]:
    """The lock's file, open and locked, and what the last holder left in it.

    Raises:
        RecipeError: if another run holds it.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = lock(file)
            # never opened twice: closing a second one would give the lock up
            before = content(file)
            if locked is False or (before and lives(before, path, locked=locked is True)):
                raise RecipeError(in_use(path.parent, before))
            if locked is None:
                tell(
                    f"{path.parent}: this file system cannot lock; that no other run is in it is "
                    "known by signs of life alone, and checkpoints by their manifests"
                )
            try:
                if os.fstat(file).st_ino == path.stat().st_ino:
                    return file, before
            except FileNotFoundError:  # its holder ended in between, and removed it
                pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def lock(file: int) -> bool | None:
    """Whether the lock is ours; None where the file system has none.

    The lock is one of the process: what it starts does not hold it when it dies.
    """
    if fcntl is None:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in CANNOT_LOCK:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def content(file: int) -> dict[str, Any] | None:
    """Who holds the lock, or held it; None where nobody has written it."""
    try:
        os.lseek(file, 0, os.SEEK_SET)  # Windows has no pread
        found = json.loads(os.read(file, 4096))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def write(file: int) -> None:
    """Say who holds the lock, and that it lives."""
    words = {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time()}
    text = json.dumps(words).encode()
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, text)
    os.ftruncate(file, len(text))


def beat(file: int, ended: threading.Event) -> None:
    """Give a sign of life now and then."""
    while not ended.wait(BEAT_S):
        try:
            write(file)
        except OSError:  # a full disk; the lock holds all the same
            continue


def lives(holder: dict[str, Any], path: Path, *, locked: bool) -> bool:
    """Whether the run that wrote a lock is still there.

    Args:
        holder: what it wrote.
        path: the lock's file.
        locked: whether we have the lock, which on one machine proves that nobody else has; without
            it a process of this number may be another one, so its signs of life count.
    """
    if holder.get("host") == socket.gethostname() and (locked or not is_process(holder.get("pid"))):
        return False
    # clocks of two machines differ: both times are the file system's
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    probe.touch()
    silent = probe.stat().st_mtime - path.stat().st_mtime
    probe.unlink()
    return silent < DEAD_S


def is_process(pid: Any) -> bool:
    """Whether a process of this number is there."""
    try:
        return psutil.pid_exists(int(pid))  # os.kill would end it on Windows
    except (TypeError, ValueError):
        return False


def in_use(folder: Path, holder: dict[str, Any] | None) -> str:
    """The message about a folder in which another run is."""
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
    return f"{folder} is in use: {who} runs in it; wait for it, end it, or give another output_dir"
