"""One run in a folder at a time."""

import errno
import json
import os
import signal
import socket
import time

import pytest

from tests.faults.forks import Fork
from toolkit.artifacts import running
from toolkit.artifacts.manifest import RUNNING, outputs_of
from toolkit.artifacts.running import DEAD_S, only_run
from toolkit.errors import RecipeError

told = []


@pytest.fixture(autouse=True)
def nothing_told():
    told.clear()


def tell(line):
    told.append(line)


def holder(folder, log):
    """A process that holds the folder."""

    def hold():
        with only_run(folder, print):
            (folder / "held").touch()
            time.sleep(60)

    fork = Fork(hold, log)
    while not (folder / "held").exists():
        assert fork.wait(0.01) is None, log.read_text()
    return fork


def test_a_folder_is_held_while_the_block_runs(tmp_path):
    with only_run(tmp_path / "run", tell):
        said = json.loads((tmp_path / "run" / RUNNING).read_text())
        assert (said["host"], said["pid"]) == (socket.gethostname(), os.getpid())
        assert time.time() - said["heartbeat"] < 60
        assert outputs_of(tmp_path / "run") == {}
        with (
            pytest.raises(RecipeError, match="by another run of this process"),
            only_run(tmp_path / "run", tell),
        ):
            pass
    assert list((tmp_path / "run").iterdir()) == []
    assert told == []


def test_the_second_is_refused_and_a_dead_one_is_followed(tmp_path):
    folder = tmp_path / "run"
    fork = holder(folder, tmp_path / "log")
    with pytest.raises(RecipeError, match=f"in use: process {fork.pid} on {socket.gethostname()}"):
        only_run(folder, tell).__enter__()
    os.kill(fork.pid, signal.SIGSTOP)  # a run that hangs holds it all the same
    with pytest.raises(RecipeError, match="in use"):
        only_run(folder, tell).__enter__()
    fork.kill()
    with only_run(folder, tell):
        pass
    assert f"ended without a word (process {fork.pid}" in told[0]
    assert not (folder / RUNNING).exists()


def test_what_a_run_has_started_does_not_hold_the_folder(tmp_path):
    def hold_and_leave_a_child():
        only_run(tmp_path / "run", print).__enter__()
        if os.fork() == 0:
            time.sleep(20)
        os._exit(7)

    fork = Fork(hold_and_leave_a_child, tmp_path / "log")
    assert fork.wait() == 7
    with only_run(tmp_path / "run", tell):
        pass
    os.killpg(fork.pid, signal.SIGKILL)


@pytest.mark.parametrize(("silent", "free"), [(1, False), (DEAD_S + 5, True)])
def test_another_machine_lives_while_its_heart_beats(silent, free, tmp_path):
    path = tmp_path / RUNNING
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "heartbeat": 0}))
    os.utime(path, (time.time() - silent,) * 2)
    if free:
        with only_run(tmp_path, tell):
            pass
        assert "process 1 on elsewhere" in told[0]
    else:
        with pytest.raises(RecipeError, match="process 1 on elsewhere runs in it"):
            only_run(tmp_path, tell).__enter__()
        assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("pid", "silent", "alive"),
    [
        (os.getpid(), 1, True),
        (2**22 + 1, 1, False),
        (os.getpid(), DEAD_S + 5, False),  # another process has the number of the dead one
    ],
    ids=["lives", "is gone", "is silent"],
)
def test_where_the_file_system_cannot_lock_that_is_said(pid, silent, alive, tmp_path, monkeypatch):
    def cannot(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(running.fcntl, "lockf", cannot)
    path = tmp_path / RUNNING
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": pid}))
    os.utime(path, (time.time() - silent,) * 2)
    if alive:
        with pytest.raises(RecipeError, match="in use"):
            only_run(tmp_path, tell).__enter__()
    else:
        with only_run(tmp_path, tell):
            pass
        assert "cannot lock" in told[0]


def test_it_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "BEAT_S", 0.01)
    with only_run(tmp_path, tell):
        first = (tmp_path / RUNNING).read_bytes()
        for _ in range(1000):
            if (tmp_path / RUNNING).read_bytes() != first:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no sign of life in ten seconds")
