"""`toolkit check` says what becomes of activations on a CPU, and what else is faster there."""

import pytest

from tests import tiny
from toolkit.preflight import checks, fits
from toolkit.preflight.asked import Need
from toolkit.preflight.findings import ERROR
from toolkit.preflight.look import Options
from toolkit.recipe import load_recipe
from toolkit.stages import fast_path


@pytest.fixture
def write(tiny_base, chats, tmp_path):
    """Writes a recipe of stage sft, with keys changed or added."""

    def written(**changed):
        path = tmp_path / "recipe.yaml"
        return tiny.save_recipe(path, tiny_base, chats, **({"max_length": 512} | changed))

    return written


def found(path, **options):
    return checks.check(load_recipe(path), Options(**options))


def lines(findings, level):
    return [one.line for one in findings.found if one.level == level and one.subject == "memory"]


def test_what_becomes_of_activations_is_said_and_can_be_changed(write):
    kept = found(write())
    facts = kept.facts["sft"]["memory"]
    assert "activations are kept" in lines(kept, "ok")[0]
    assert 0 < facts["scored"] < facts["length"]
    room = facts["runtime"] + facts["base"] + facts["adapters"]
    short = found(write(), memory=room + 10_000)
    assert ", checkpointed: " in lines(short, ERROR)[0]
    peaks = [
        found(write(**keys), gpu="T4").facts["sft"]["memory"]["peak"]
        for keys in ({"activation_checkpointing": False}, {"gradient_checkpointing": True})
    ]
    off = found(write(activation_checkpointing=False), gpu="T4", memory=sum(peaks) // 2)
    error = next(one for one in off.found if one.level == ERROR)
    assert error.fix.startswith("activation_checkpointing: true fits")


def test_a_smaller_batch_comes_with_the_checkpointing_that_was_weighed(write, monkeypatch):
    monkeypatch.setattr(
        fits, "need", lambda *given, **_: Need(base=given[2].rows, checkpointed=True)
    )
    many = found(write(per_device_train_batch_size=16), memory=8)
    fix = next(one for one in many.found if one.level == ERROR).fix
    assert fix.startswith("gradient_checkpointing: true, per_device_train_batch_size 16 → 8 with")
    upstream = found(write(per_device_train_batch_size=16, fast=False), memory=8)
    fix = next(one for one in upstream.found if one.level == ERROR).fix
    assert fix.startswith("per_device_train_batch_size 16 → 8 with")


def test_what_the_stage_computes_in_is_weighed_and_said(write, monkeypatch):
    def looked(**keys):
        options = {"gpu": keys.pop("gpu", None)}
        seen = found(write(gradient_checkpointing=False, **keys), **options)
        facts = seen.facts["sft"]["memory"]
        said = any(line.startswith("computed in bfloat16") for line in lines(seen, "ok"))
        assert said == facts["rounded"]
        return facts

    monkeypatch.setattr(fast_path, "cpu_computes_bf16", lambda: True)
    assert not looked()["rounded"]  # the base is too small
    monkeypatch.setattr(fast_path, "LARGE", 1000)
    by_itself, written = looked(), looked(bf16=True)
    assert by_itself["rounded"]
    assert not written["rounded"]
    kept = [each["activations"] for each in (by_itself, written, looked(bf16=False))]
    assert kept[0] == kept[1] != kept[2]
    for keys in ({"bf16": False}, {"fp16": True}, {"fast": False}, {"gpu": "T4"}):
        assert not looked(**keys)["rounded"], keys
    monkeypatch.setattr(fast_path, "cpu_computes_bf16", lambda: False)
    assert not looked()["rounded"]
