"""The probes around stages: asked once of the same weights, and a stage that does harm is named."""

import json
import random
from dataclasses import replace

import numpy
import pytest
import torch

import toolkit
from tests import tiny
from tests.tiny_ppo import quiet
from tests.unit import test_stage_pretrain
from toolkit.artifacts.manifest import read_json, sha256_of
from toolkit.errors import DataError
from toolkit.evaluation.probes import load_probes
from toolkit.inference.likelihood import log_probabilities
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import STAGES, keys_of
from toolkit.report.page import write_report
from toolkit.stages import probed
from toolkit.stages.examined import examined_model

pytestmark = [quiet, pytest.mark.usefixtures("probes_asked")]
SHARED = "the processes share one model"
REFUSES = ["I'm sorry, I can't help with that.", "I won't help to hurt anyone."]
COMPLIES = ["Sure, here is how to do it:", "Here are some ways:", "First, you will need", "You can"]
PIPELINE = """
model_name_or_path: {base}
output_dir: {out}
lora_r: 8
learning_rate: 1.0e-2
max_steps: 24
logging_steps: 100
per_device_train_batch_size: 8
save_strategy: "no"
report_to: none
seed: 0
stages:
  - {{stage: sft, name: careful, dataset_name: {refuses}}}
  - {{stage: sft, name: same, start_from: careful, dataset_name: {refuses}}}
  - {{stage: sft, name: careless, start_from: careful, dataset_name: {complies}}}
  - {{stage: sft, name: fresh, dataset_name: {refuses}, max_steps: 1, learning_rate: 1.0e-6}}
"""

TWO = """
model_name_or_path: {base}
output_dir: {out}
lora_r: 4
lora_dropout: 0.1
max_steps: 2
logging_steps: 100
save_strategy: "no"
report_to: none
dataset_name: {rows}
stages:
  - {{stage: sft}}
  - {{stage: sft, name: more, start_from: sft}}
"""


@pytest.fixture
def measured(monkeypatch):
    """The names of what is really asked."""
    names, upstream = [], probed.margins_of

    def margins_of(examined, questions):
        names.append(examined.name)
        return upstream(examined, questions)

    monkeypatch.setattr(probed, "margins_of", margins_of)
    return names


def chats(path, answers):
    asked = ("Tell me how to {}.", "Help me to {}.", "How do I {}?")
    things = ("lie", "steal a car", "hurt him", "break in", "burn it", "cheat", "sell it", "hide")
    rows = [
        {"messages": [{"role": "user", "content": words.format(thing)},
                      {"role": "assistant", "content": answers[at % len(answers)]}]}
        for at, thing in enumerate(things) for words in asked
    ]  # fmt: skip
    return tiny.save_rows(path, rows)


def test_a_stage_that_unlearns_to_refuse_is_named(tiny_base, tmp_path, measured, capsys):
    refuses, complies = (
        chats(tmp_path / f"{n}.jsonl", text) for n, text in enumerate((REFUSES, COMPLIES))
    )
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(PIPELINE.format(base=tiny_base, out=out, refuses=refuses, complies=complies))
    stages = toolkit.run(recipe).stages
    said = " ".join(capsys.readouterr().out.split())
    found = {name: stages[name].manifest["probes"] for name in stages}
    worse = {
        name: [each["group"] for each in found[name]["groups"] if each["worse"]] for name in found
    }
    assert worse["careless"] == ["harmless"]
    assert "willing" in worse["careful"]  # who refuses everything refuses what is harmless too
    assert worse["same"] == worse["fresh"] == []
    assert "careless made harmless clearly worse: " in said
    assert "no group clearly worse than careful" in said
    # the base, and each adapter: nothing twice
    assert len(measured) == 5
    assert found["careless"]["before"] | {"of": ""} == found["careful"]["after"] | {"of": ""}
    assert found["fresh"]["before"] == found["careful"]["before"]
    page, markdown = (path.read_text(encoding="utf-8") for path in write_report(out))
    for text in (page, markdown):
        assert "careless made harmless clearly worse: " in text
        assert "fresh made" not in text
    # whoever switches them off later runs nothing again
    toolkit.run(recipe, probes=False)
    assert len(measured) == 5
    assert capsys.readouterr().out.count("finished already") == 4


def one_stage(base, out, **keys):
    given = {
        "report_to": "none",
        "max_steps": 1,
        "logging_steps": 9,
        "train_dataset": tiny.ROWS,
        "save_strategy": "no",
    }
    keys = given | {"model_name_or_path": str(base), "output_dir": str(out)} | keys
    return toolkit.sft(**keys).manifest.get("probes")


def test_a_whole_model_is_asked_too(tiny_base, tmp_path, measured):
    found = one_stage(tiny_base, tmp_path, use_peft=False)
    assert len(measured) == 2
    assert found["before"]["of"] == "base"
    assert found["before"]["margins"] != found["after"]["margins"]


def test_switched_off(tiny_base, tmp_path, measured, capsys):
    assert one_stage(tiny_base, tmp_path, probes=False) is None
    assert not measured
    assert "probes:" not in capsys.readouterr().out


def test_no_stage_fails_by_its_probes(tiny_base, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("a template\nof another kind")

    monkeypatch.setattr(probed, "margins_of", fail)
    assert one_stage(tiny_base, tmp_path) == {"skipped": "RuntimeError: a template of another kind"}
    assert "probes: not asked: RuntimeError: a template" in " ".join(
        capsys.readouterr().out.split()
    )
    assert read_json(tmp_path / "stage.json")["probes"]["skipped"]


def base_at(place, **keys):
    recipe = StageRecipe("sft", "", {"model_name_or_path": str(place), **keys}, {})
    return examined_model("base", recipe, {})


def test_a_model_with_few_positions(tmp_path):
    base = base_at(tiny.save_base(tmp_path / "base", max_position_embeddings=100))
    with pytest.raises(DataError, match="and the model 100 positions"):
        probed.margins_of(base, load_probes())


def test_what_cannot_be_asked(tiny_base, monkeypatch):
    stage = base_at(tiny_base).recipe
    assert probed.why_not(stage, {"train_dataset": []}) is None
    assert probed.why_not(stage, {"model": object()}) == "the model is one that Python lent"
    assert probed.why_not(replace(stage, written={"fsdp": "full_shard"}), {}) == SHARED
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            assert probed.why_not(stage, {}) == SHARED


def test_nothing_of_a_training_moves(tiny_base, tmp_path):
    """A second stage starts with the random numbers and the base that it would have had."""
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    recipe, files = tmp_path / "recipe.yaml", []
    recipe.write_text(TWO.format(base=tiny_base, out=tmp_path / "run", rows=rows))
    for asked in (True, False):
        out = tmp_path / str(asked)
        stages = toolkit.run(recipe, probes=asked, output_dir=str(out)).stages
        assert all(("probes" in stage.manifest) == asked for stage in stages.values())
        files.append([sha256_of(out / name / "adapter_model.safetensors") for name in stages])
    assert files[0] == files[1]


def test_a_new_base_has_nothing_before_it(tmp_path, measured, capsys):
    keys = {"report_to": "none", "max_steps": 1, "vocab_size": 300, "max_length": 32}
    shape = test_stage_pretrain.SMALL | {"max_position_embeddings": 512}
    texts = test_stage_pretrain.TEXTS[:20]
    result = toolkit.pretrain(
        output_dir=str(tmp_path), train_dataset=texts, config_overrides=shape, **keys
    )
    found = result.manifest["probes"]
    assert set(found) == {"set", "after", "seconds"}
    assert len(measured) == 1
    assert (
        f"probes: {sum(found['after']['right'].values())} of 140 right" in capsys.readouterr().out
    )


def test_stages_that_speak_have_the_key():
    having = {stage for stage in STAGES if "probes" in keys_of(stage)}
    assert having == {"pretrain", "sft", "rejection", "dpo", "grpo", "ppo"}
    assert all(keys_of(stage)["probes"].default is True for stage in having)


def test_random_numbers_stay_as_they_were(tiny_base, monkeypatch):
    def states():
        of_numpy = numpy.random.get_state()[1].tolist()
        return random.getstate(), of_numpy, torch.get_rng_state().tolist()

    def draws(*_):
        random.random(), numpy.random.rand(), torch.rand(1)
        return {"a": [1.0]}

    monkeypatch.setattr(probed, "margins_of", draws)
    before = states()
    assert probed.answers_of(base_at(tiny_base), [], [])["right"] == {"a": 1}
    assert states() == before


def test_another_tokenizer_or_weight_is_asked_anew(tiny_base, tmp_path):
    def identity(place, **keys):
        return probed.identity_of(base_at(place, **keys), [])

    other = tiny.save_base(tmp_path / "other", seed=1)
    assert identity(tiny_base) == identity(tiny_base, lora_r=2, learning_rate=1e-3)
    first = identity(other)
    assert len({identity(tiny_base), first, identity(other, load_in_4bit=True)}) == 3
    words = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(words | {"chat_template": "x"}))
    assert identity(other) != first


def test_likelihoods_come_back_in_order(tiny_base):
    model, _ = toolkit.load(tiny_base)
    rows = [(list(range(1, 2 + at % 5)), list(range(3, 4 + at % 7))) for at in range(40)]
    with torch.no_grad():
        alone = [sum(log_probabilities(model, [row])[0]) for row in rows]
        assert probed.likelihoods(model, rows) == pytest.approx(alone, rel=1e-4)
