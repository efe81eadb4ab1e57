"""The metric of an exam: offline, without a file left, and right."""

import subprocess
import sys

import evaluate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.evaluation.intervals import wilson
from toolkit.evaluation.metrics import ExamAccuracy

ANSWERS = st.lists(
    st.tuples(st.integers(0, 9), st.booleans(), st.booleans(), st.integers(1, 99)), min_size=1
)


def columns(answers):
    names = ("question", "right", "stopped", "tokens")
    return dict(zip(names, map(list, zip(*answers, strict=True)), strict=True))


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return ExamAccuracy(cache_dir=str(tmp_path_factory.mktemp("cache")), keep_in_memory=True)


def test_by_hand(metric):
    assert isinstance(metric, evaluate.Metric)
    found = metric.compute(
        **columns(
            [(7, True, True, 4), (7, True, False, 8), (3, False, True, 6), (3, False, True, 6)]
        )
    )
    assert found == {
        "accuracy": 0.25, "low": wilson(0.5, 2)[0], "high": wilson(0.5, 2)[1], "lenient": 0.5,
        "stopped": 0.75, "tokens": 6, "n": 2, "samples": 2,
    }  # fmt: skip


def test_a_question_weighs_the_same_however_often_it_is_answered(metric):
    answers = [(0, True, True, 1)] * 3 + [(1, False, True, 1)]
    found = metric.compute(**columns(answers))
    assert (found["accuracy"], found["samples"]) == (0.5, 3)


@settings(max_examples=50)
@given(ANSWERS)
def test_strict_is_at_most_lenient_and_inside_its_interval(metric, answers):
    found = metric.compute(**columns(answers))
    assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    assert found["accuracy"] <= found["lenient"] + 1e-12
    assert found["accuracy"] <= found["stopped"] + 1e-12
    assert found == metric.compute(**columns(answers[::-1])) | {"tokens": found["tokens"]}
    ended = metric.compute(**columns([(q, right, True, n) for q, right, _, n in answers]))
    assert ended["accuracy"] == ended["lenient"] == pytest.approx(found["lenient"])


def test_it_needs_no_network_and_leaves_no_file(tmp_path):
    """In a process of its own that may open no socket, twice at once over one cache."""
    script = f"""
import socket
socket.socket.connect = None
from toolkit.evaluation.metrics import ExamAccuracy
one, two = (ExamAccuracy(cache_dir={str(tmp_path)!r}, keep_in_memory=True) for _ in "ab")
for metric in (one, two):
    metric.add_batch(question=[0], right=[True], stopped=[metric is one], tokens=[1])
print(one.compute()["accuracy"], two.compute()["accuracy"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1.0", "0.0"], done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
