"""The sandbox: what a program inside can see and do, and that there is none without walls."""

import json
import os
import socket
import sys
import time

import pytest

from toolkit.errors import RecipeError
from toolkit.rewards import get, sandbox
from toolkit.rewards.bounded import Bounded
from toolkit.rewards.sandbox import Limits, run_script
from toolkit.rewards.time_limit import Cut, time_limit


@pytest.fixture
def fresh():
    """The sandbox is tried again, before and after."""

    def forget():
        sandbox._why_not.cache_clear()
        sandbox._walls.cache_clear()

    forget()
    yield
    forget()


def said(program, stdin="", **limits):
    ended = run_script(program, stdin, Limits(**{"seconds": 5.0} | limits))
    return ended.output.decode().splitlines()


# What each line does must fail inside. Were the walls to fall, none of it does harm outside: what is
# written to or removed is a file of this test, and what is killed does not exist.
FORBIDDEN = """
open('/etc/passwd')
open('/proc/self/status')
os.listdir(os.path.dirname(HERE))
open(CANARY)
open(CANARY, 'w')
os.remove(CANARY)
os.chroot(os.path.dirname(CANARY))
ctypes_ok(libc.unshare(0x10000000))
os.mknod('/tmp/toolkit-sda', 0o60666, os.makedev(8, 0)); open('/tmp/toolkit-sda')
socket.create_connection(('127.0.0.1', PORT), 1)
socket.create_connection(('192.0.2.1', 80), 1)
socket.gethostbyname('example.org')
os.setpriority(os.PRIO_PROCESS, 0, -5)
resource.setrlimit(resource.RLIMIT_NPROC, (999, 999))
os.environ['PATH']
os.environ['HOME']
import numpy
import toolkit
"""


def test_what_is_forbidden(walls, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("alive")
    with socket.create_server(("127.0.0.1", 0)) as server:
        lines = FORBIDDEN.strip().splitlines()
        program = f"""
import ctypes, os, resource, socket, time
HERE, PORT = {os.path.abspath(__file__)!r}, {server.getsockname()[1]}
CANARY = {str(canary)!r}
libc = ctypes.CDLL(None, use_errno=True)
def ctypes_ok(code):
    if code: raise OSError(ctypes.get_errno())
for line in {lines!r}:
    try: exec(line)
    except (OSError, KeyError, ImportError, ValueError): continue
    print('DONE', line)
print('the end')
"""
        assert said(program) == ["the end"]


def test_what_there_is(walls):
    program = """
import json, os, sys, random, re, math, decimal, sqlite3, ssl, zlib, asyncio
open('x', 'w').write('y'); os.mkdir('d')
print(json.dumps([os.getcwd(), sorted(os.listdir('/dev')), dict(os.environ), input(), os.getpid()]))
"""
    folder, devices, environment, line, pid = json.loads(said(program, stdin="ä\n")[0])
    assert (folder, line, pid) == ("/tmp", "ä", 2)
    assert devices == ["null", "random", "urandom", "zero"]
    assert environment == {}
    assert not os.path.exists("/tmp/d")


def test_limits(walls):
    memory = "x = 'x' * (200 * 2 ** 20)\nprint('too much')"
    assert said(memory, memory=128 * 2**20) == []
    assert said(memory.replace("200", "20"), memory=128 * 2**20) == ["too much"]
    assert len("".join(said("while True: print('x' * 1000)", disk=2**16))) <= 2**16
    threads = """
import threading, time
count = 0
try:
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count)
"""
    if os.getuid() or not os.geteuid():  # the system does not count the processes of its root
        assert 1 <= int(said(threads, processes=8)[0]) <= 8
    started = time.monotonic()
    assert run_script("while True: pass", "", Limits(seconds=0.5)).code == 124
    assert time.monotonic() - started < 3


def test_without_bubblewrap_it_refuses(fresh, monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(RecipeError) as caught:
        get("code")
    assert str(caught.value) == (
        "reward code: no isolation: bubblewrap here (there is no bubblewrap): install it (apt-get "
        "install bubblewrap; 0.8 or newer, on Linux), or, if the programs may read and change "
        "whatever you can, write isolation: process"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "exit code 1"),
        ("echo 'bwrap: Unknown option --disable-userns' >&2; exit 1", "bwrap: Unknown option .*"),
    ],
)
def test_walls_that_cannot_be_built_are_refused_with_the_reason(
    fresh, monkeypatch, tmp_path, script, reason
):
    broken = tmp_path / "bwrap"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(
        sandbox.shutil, "which", lambda name: str(broken) if name == "bwrap" else None
    )
    with pytest.raises(RecipeError, match=rf"no isolation: bubblewrap here \({reason}\): let it"):
        get("code")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux")
def test_walls_that_are_built_by_halves_run_nothing(fresh, monkeypatch):
    if reason := sandbox._why_not(sandbox.BUBBLEWRAP):
        pytest.skip(f"no bubblewrap here: {reason}")
    sandbox._why_not.cache_clear()
    sandbox._walls.cache_clear()
    monkeypatch.setattr(sandbox, "_folders", lambda: ("/no/such/folder",))
    with pytest.raises(RecipeError, match=r"here \(bwrap: Can't find source path /no/such/folder"):
        get("code")


def test_with_limits_alone(fresh, monkeypatch):
    if "Permission denied" in (sandbox._why_not(sandbox.PROCESS) or ""):
        with pytest.raises(RecipeError, match="run as a user other than root"):
            get("code", isolation="process")
        # root gives itself up, and a Python in root's home is out of nobody's reach
        monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
        sandbox._why_not.cache_clear()
    if reason := sandbox._why_not(sandbox.PROCESS):
        pytest.skip(f"no processes with limits here: {reason}")
    limits = {"isolation": "process"}
    assert said("print(open('/proc/self/limits').read()[:5])", **limits) == ["Limit"]
    assert said("import os\ntry: os.fork()\nexcept OSError: print('no')", **limits) == ["no"]
    assert said("import os\ntry: os.setsid()\nexcept OSError: print('no')", **limits) == ["no"]
    assert said("import os\nprint(os.getuid() > 0, len(os.environ) < 2)", **limits) == ["True True"]
    started = time.monotonic()
    assert run_script("while True: pass", "", Limits(seconds=0.5, **limits)).code is None
    assert time.monotonic() - started < 3
    tests = ["assert f(1) == 2", "assert f(1) == 3"]
    found = sandbox.run_tests("def f(x): return x + 1", tests, Limits(seconds=5.0, **limits))
    assert found == [True, False]


def test_a_bounded_call():
    double = Bounded("operator:mul", seconds=20.0)
    assert double(21, 2) == 42
    assert double("ä\ud800", 2) == "ä\ud800" * 2
    with pytest.raises(TimeoutError):
        double("a", "b")  # it raises, and the process ends
    assert double([1], 2) == [1, 1]
    slow = Bounded("time:sleep", seconds=0.05)
    with pytest.raises(TimeoutError, match=r"time:sleep took over 0.05 s"):
        slow(30)
    assert slow(0) is None


@pytest.mark.parametrize("is_started", [False, True])
def test_a_call_that_is_cut_leaves_no_answer_to_the_next(is_started):
    say = Bounded("subprocess:getoutput", seconds=20.0)
    assert not is_started or say("echo first") == "first"
    with pytest.raises(Cut), time_limit(0.3 if is_started else 0.01, "mine"):
        say("sleep 1; echo poison")
    assert say("sleep 1; echo mine") == "mine"
