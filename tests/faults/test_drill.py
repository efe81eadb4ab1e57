"""The drills, some rounds of each; `make drill` plays two hundred of `kill -9`."""

import shutil

import pytest

from tests import tiny
from tests.faults import drill
from tests.tiny_ppo import quiet

pytestmark = [pytest.mark.slow, quiet]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    place = tmp_path_factory.mktemp("drill")
    base = tiny.save_base(place / "base")
    drill.warm(base, place)
    return base


@pytest.mark.parametrize(("stage", "rounds"), [("sft", 6), ("grpo", 7), ("ppo", 7)])
def test_killed_at_random_moments_it_ends_as_the_unbroken_run(stage, rounds, base, tmp_path):
    found = drill.play(stage, rounds, 11, tmp_path, base)
    assert found.failures == []
    assert found.rounds == rounds
    assert found.untouched < rounds / 2, "so few kills prove nothing"
    assert found.kills >= rounds


@pytest.mark.parametrize(
    ("stage", "kind"), [("sft", "term"), ("grpo", "term"), ("ppo", "term"), ("sft", "stop")]
)
def test_told_to_end_or_paused_likewise(stage, kind, base, tmp_path):
    found = drill.play(stage, 4, 11, tmp_path, base, kind)
    assert found.failures == []
    assert found.kills, "none proves nothing"


def test_other_weights_are_a_failure(base, tmp_path, monkeypatch):
    digests = iter(["one", "another"])
    monkeypatch.setattr(drill, "digest", lambda folder: next(digests))
    assert (
        "other weights than the unbroken run" in drill.play("sft", 1, 1, tmp_path, base).failures[0]
    )


def test_a_run_that_stops_by_itself_is_a_failure(base, tmp_path, monkeypatch):
    run = drill.stage_run

    def broken(stage, base, folder, **changed):
        if folder.name == "whole":
            return run(stage, base, folder)
        return lambda: shutil.rmtree(folder / "none")

    monkeypatch.setattr(drill, "stage_run", broken)
    assert "ended with 1" in drill.play("sft", 1, 1, tmp_path, base).failures[0]
