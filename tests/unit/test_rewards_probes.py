"""What a hostile program tries, each of which must fail inside the sandbox."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from toolkit.rewards import get, sandbox
from toolkit.rewards.sandbox import Limits, run_script

MARK = f"probe-{os.getpid()}"  # in the command line of what must not outlive its sandbox


def said(program, **limits):
    """What a program prints; what it raises ends it in silence."""
    ended = run_script(program, "", Limits(**{"seconds": 5.0, "memory": 256 * 2**20} | limits))
    return ended.output.decode()


def left_alive():
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-1:] == [MARK]:
                found.append(process)
    return found


# A program prints only where it got what it wants. Were the walls to fall, none of it does harm
# outside: what is written or removed is this test's own.
FILES = {
    "the system's users": "print(open('/etc/passwd').read())",
    "the host's folders": "import os\nprint(os.listdir(HERE))",
    "a file of the host": "print(open(CANARY).read())",
    "the environment": "import os\nfor key in os.environ: print(key)",
    "processes by /proc": "import os\nprint(os.listdir('/proc'))",
    "writing below /usr": "open('/usr/toolkit-probe', 'w'); print('written')",
    "writing beside /usr": "open('/toolkit-probe', 'w'); print('written')",
    "this machine's ports": "import socket\n"
    "socket.create_connection(('127.0.0.1', PORT), 1); print('connected')",
    "the world": "import socket\n"
    "try: socket.gethostbyname('example.org')\n"
    "except OSError: socket.create_connection(('192.0.2.1', 80), 1)\nprint('connected')",
    "another namespace": "import ctypes\nlibc = ctypes.CDLL(None)\n"
    "for kind in (0x10000000, 0x00020000, 0x40000000):  # user, mount, network\n"
    "    if libc.unshare(kind) == 0: print('unshared')",
    "rights": "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('mounted')\n"
    "for change in (lambda: os.chroot('/tmp'), lambda: os.setuid(12345), lambda: os.nice(-5),\n"
    "               lambda: os.mknod('/tmp/disk', 0o60666, os.makedev(8, 0))):\n"
    "    try: change(); print('changed')\n"
    "    except OSError: pass",
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_program_cannot_reach(walls, tmp_path, name):
    canary = tmp_path / "canary"
    canary.write_text("alive")
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = f"HERE, PORT = {str(Path(__file__).parent)!r}, {server.getsockname()[1]}\n"
        assert said(f"{given}CANARY = {str(canary)!r}\n{FILES[name]}") == ""
    assert canary.read_text() == "alive"


def test_a_program_that_is_let_prints(walls):
    assert said("print('printed')") == "printed\n"


def test_a_memory_bomb(walls):
    bomb = "found = []\ntry:\n    while True: found.append('x' * 2 ** 20)\nexcept MemoryError:\n"
    assert said(f"{bomb}    n = len(found); del found; print(n)", memory=2**28) != ""
    assert int(said(f"{bomb}    n = len(found); del found; print(n)", memory=2**28)) < 256


def test_a_fork_bomb(walls):
    bomb = (
        "import os, time\nfor count in range(1000):\n"
        "    try: child = os.fork()\n    except OSError: break\n"
        "    if child == 0: time.sleep(9); os._exit(0)\n"
        "print(count, flush=True)\nos._exit(0)"
    )
    if os.geteuid() == 1000 and not os.getuid():
        pytest.skip("the system does not count the processes of its root")
    assert 0 < int(said(bomb, processes=16)) <= 16


def test_a_full_disk_and_endless_output(walls):
    full = (
        "written = 0\ntry:\n    for number in range(99):\n"
        "        with open(str(number), 'wb') as file: file.write(bytes(2 ** 20)); written += 1\n"
        "except OSError: pass\nprint(written)"
    )
    assert int(said(full, disk=8 * 2**20)) <= 8
    assert said("import os\nfor n in ('/dev/shm/x', '/dev/x', '/run/x', '/box/x'):\n"
                "    try: open(n, 'w'); print(n)\n    except OSError: pass") == ""  # fmt: skip
    assert len(said("while True: print('x' * 1000)", disk=2**24)) <= sandbox.LONGEST_OUTPUT


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_what_never_ends(walls, program):
    started = time.monotonic()
    assert run_script(program, "", Limits(seconds=0.5)).code == 124
    assert time.monotonic() - started < 0.5 + sandbox.GRACE


def test_a_process_that_hides(walls):
    program = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{MARK}'])\n"
        "    os._exit(0)\n"
        "time.sleep(0.2)\nprint('hidden')"
    )
    assert said(program) == "hidden\n"
    ended = time.monotonic() + 5
    while left_alive() and time.monotonic() < ended:
        time.sleep(0.05)
    assert left_alive() == []


PARENT = """
import sys
from toolkit.rewards.sandbox import Limits, run_script
if {mapped}:
    import os
    os.geteuid = lambda: 1000
print("ready", flush=True)
run_script("import os, sys; os.execv(sys.executable, "
           "[sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}])", "", Limits(seconds=60.0))
"""


def test_a_killed_trainer_leaves_nothing_behind(walls):
    program = PARENT.format(mark=MARK, mapped=os.geteuid() == 1000)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout.readline() == b"ready\n"
        ended = time.monotonic() + 30
        while not left_alive() and time.monotonic() < ended:
            time.sleep(0.05)
        assert left_alive(), "there was something to leave behind"
        trainer.kill()
    ended = time.monotonic() + 10
    while left_alive() and time.monotonic() < ended:
        time.sleep(0.05)
    assert left_alive() == []


@pytest.mark.parametrize(
    "program",
    ["import os\nos._exit(0)", "import sys\nsys.exit(0)", "print('1' * 99)", "raise SystemExit"],
)
def test_a_verdict_is_never_the_programs_own(walls, program):
    tests = ["assert add(1, 2) == 3"]
    reward = get("code")
    assert reward(prompts=[""], completions=[program], tests=[tests]) == [0.0]
    assert reward(prompts=[""], completions=["def add(a, b): return a + b"], tests=[tests]) == [1.0]


def test_the_expected_answer_is_not_inside(walls):
    program = (
        "import gc, json, os, sys\nfound = []\n"
        "for fd in range(64):\n"
        "    try: os.lseek(fd, 0, 0); found.append(os.read(fd, 10 ** 6).decode('utf-8', 'replace'))\n"
        "    except OSError: pass\n"
        "for folder, _, names in os.walk('/tmp'):\n"
        "    found += [open(os.path.join(folder, name)).read() for name in names]\n"
        "found += [str(each) for each in gc.get_objects() if isinstance(each, (str, dict, list))]\n"
        "secret = 'the-' + 'secret-42'\n"
        "print('the-secret-' + '42' if any(secret in each for each in found if each != secret) else 'no')"
    )
    pairs = [{"input": "", "output": "the-secret-42"}]
    assert get("code")(prompts=[""], completions=[program], tests=[json.dumps(pairs)]) == [0.0]
