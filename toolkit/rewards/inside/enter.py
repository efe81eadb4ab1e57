"""The first program of a sandbox: gives up every right, and runs a role.

Started by `toolkit.rewards.sandbox` as `python -I -S enter.py`, as the first process inside
bubblewrap's walls, with an order as JSON on standard input. It stays as the trusted process that
ends all others when time is over; what it was ordered to run is its child.
"""

import ctypes
import json
import os
import signal
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

FAILED = 97  # exit code, with the reason on standard error

PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION = 0x20080522

BOX = "/box"  # where root has a second set of the same walls
NOBODY = 65534
OPEN_FILES = 64


@cache
def libc() -> Any:
    """The system's own functions."""
    return ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Enter, and run the role; never returns."""
    order = json.load(sys.stdin)
    try:
        load_roles()
        os.environ.clear()
        if order["isolated"]:
            if not order["mapped"]:
                os.chroot(BOX)  # from a changed root, nobody can make a user namespace of his own
            os.chdir("/tmp")
            if child := os.fork():
                wait_for(child, order["seconds"])
        else:
            os.chdir(order["folder"])
        give_up_rights(order)
        limit(order)
    except OSError as error:
        print(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)  # noqa: T201
        os._exit(FAILED)
    run(order)


def load_roles() -> None:
    """Import what the roles need while the file system still has it."""
    sys.path.insert(0, str(Path(__file__).parent))
    import roles  # noqa: F401

    sys.path.pop(0)


def wait_for(child: int, seconds: float) -> None:
    """End with the child, or without it when time is over; either way, all processes end."""
    end = time.monotonic() + seconds
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            os._exit(FAILED + 1)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if ended == 0:
            left = end - time.monotonic()
            if left <= 0:
                os._exit(124)
            signal.sigtimedwait([signal.SIGCHLD], left)


def give_up_rights(order: dict[str, Any]) -> None:
    """Become a user who owns nothing, without any capability."""
    os.umask(0)
    if os.geteuid() == 0 and not order["mapped"]:
        os.setgroups([])
        user = order["user"] if order["isolated"] else NOBODY
        try:
            os.setgid(user)
            os.setuid(user)
        except OSError:  # a container that has fewer users
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        os.listdir(os.path.dirname(os.__file__))  # Python must be readable to nobody
    if sys.platform == "linux":
        head, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
        if libc().capset(head, none) or libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capset")


def limit(order: dict[str, Any]) -> None:
    """Set what this process, and every one that it starts, can use at most."""
    import resource

    wanted = {
        "RLIMIT_AS": order["memory"],
        "RLIMIT_CPU": int(order["seconds"]) + 1,
        "RLIMIT_FSIZE": order["disk"],
        "RLIMIT_NPROC": order["processes"],
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }
    for name, most in wanted.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def run(order: dict[str, Any]) -> None:
    """Run the role that was ordered, and end."""
    import roles

    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 2)
    if order["role"] == "script":
        sys.exit(roles.script(order))  # after its threads
    code = 1
    try:
        code = getattr(roles, order["role"])(order, nothing)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
