"""How many processes share the work on rows, and what of it a user sees when it ends early."""

import os
import signal
import subprocess
import sys
import time

import pytest
from datasets import Dataset

from tests import tiny
from toolkit.data import workers
from toolkit.data.tables import load_table
from toolkit.errors import DataError

SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from datasets import Dataset
from toolkit.data.workers import shared

def slow(batch):
    print("begun", flush=True)
    time.sleep(60)
    return batch

try:
    shared(Dataset.from_dict({"a": list(range(8))}), slow, batched=True, num_proc=2)
except KeyboardInterrupt as error:
    print("ended by", type(error).__name__, flush=True)
"""


def test_by_size_and_cores(chats, monkeypatch):
    rows, _ = load_table(chats)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert workers.workers(rows) is None
    monkeypatch.setattr(workers, "BYTES_A_WORKER", workers.bytes_of(rows) // 3)
    assert workers.workers(rows) == 3
    assert workers.workers(rows.select(range(10))) is None, "counted by rows, not by their table"
    monkeypatch.setattr(workers, "BYTES_A_WORKER", 1)
    assert workers.workers(rows) == workers.MOST_WORKERS
    assert workers.workers(rows, among=16) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert workers.workers(rows) is None


def test_an_interruption_ends_them_without_a_word():
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, cwd=tiny.__file__.rpartition("/tests/")[0],
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline().startswith("begun")
        time.sleep(0.5)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        said, wrong = child.communicate(timeout=120)
    assert said.splitlines()[-1] == "ended by KeyboardInterrupt"
    assert "Traceback" not in wrong


def test_one_that_was_killed_is_told(monkeypatch):
    def died(*_, **__):
        raise RuntimeError("One of the subprocesses has abruptly died during map operation.")

    monkeypatch.setattr(Dataset, "map", died)
    with pytest.raises(
        DataError, match="killed, as for lack of memory; write fewer: dataset_num_proc: 1"
    ):
        workers.shared(Dataset.from_dict({"a": [1]}), len)


def test_the_words_of_datasets_are_known():
    from datasets.utils import py_utils

    with open(py_utils.__file__, encoding="utf-8") as file:
        assert workers.DIED in file.read()
