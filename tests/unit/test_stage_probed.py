"""The probes around stages: asked once of the same weights, and a stage that does harm is named."""

import json
import random

import numpy
import pytest
import torch

import toolkit
from tests import tiny
from tests.tiny_ppo import quiet
from tests.unit import test_stage_pretrain
from toolkit.artifacts.manifest import read_json
from toolkit.recipe.keys import STAGES, keys_of
from toolkit.report.page import write_report
from toolkit.stages import probed

pytestmark = [quiet, pytest.mark.usefixtures("probes_asked")]
REFUSES = ["I'm sorry, I can't help with that.", "I won't help to hurt anyone."]
COMPLIES = ["Sure, here is how to do it:", "Here are some ways:", "First, you will need", "You can"]
PIPELINE = """
model_name_or_path: {base}
output_dir: {out}
lora_r: 8
learning_rate: 1.0e-2
max_steps: 30
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
    given = {"report_to": "none", "max_steps": 1, "train_dataset": tiny.ROWS, "save_strategy": "no"}
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


def test_a_model_with_few_positions(tmp_path):
    base = tiny.save_base(tmp_path / "base", max_position_embeddings=100)
    rows = [{"text": "short"}] * 8
    assert "100 positions" in one_stage(base, tmp_path / "run", train_dataset=rows)["skipped"]


def test_a_model_that_python_lent(tiny_base, tmp_path):
    model, tokenizer = toolkit.load(tiny_base)
    found = one_stage(
        tiny_base, tmp_path, model=model, processing_class=tokenizer, model_name_or_path=None
    )
    assert found == {"skipped": "the model is one that Python lent"}


@pytest.mark.parametrize(
    "sharded", [("ACCELERATE_USE_FSDP", "true"), ("ACCELERATE_USE_DEEPSPEED", "1")]
)
def test_a_model_in_shards(sharded, tiny_base, monkeypatch):
    from toolkit.recipe import recipe_from_keywords

    (stage,) = recipe_from_keywords(
        "sft", model_name_or_path=str(tiny_base), given=["train_dataset"]
    ).stages
    assert probed.why_not(stage, {}) is None
    monkeypatch.setenv(*sharded)
    assert probed.why_not(stage, {}) == "the processes share one model"


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
    assert having == {"pretrain", "sft", "dpo", "grpo", "ppo"}
    assert all(keys_of(stage)["probes"].default is True for stage in having)


def test_random_numbers_stay_as_they_were(tiny_base, monkeypatch):
    from toolkit.recipe import StageRecipe
    from toolkit.stages.examined import examined_model

    def states():
        return (
            random.getstate(),
            numpy.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )

    def draws(*_):
        random.random(), numpy.random.rand(), torch.rand(1)
        return {"a": [1.0]}

    monkeypatch.setattr(probed, "margins_of", draws)
    base = examined_model(
        "base", StageRecipe("evaluate", "", {"model_name_or_path": str(tiny_base)}, {}), {}
    )
    before = states()
    assert probed.answers_of(base, [], [])["right"] == {"a": 1}
    assert states() == before


def test_another_tokenizer_or_weight_is_asked_anew(tiny_base, tmp_path):
    from toolkit.recipe import StageRecipe
    from toolkit.stages.examined import examined_model

    def identity(place, **keys):
        recipe = StageRecipe("sft", "", {"model_name_or_path": str(place), **keys}, {})
        return probed.identity_of(examined_model("base", recipe, {}), [])

    other = tiny.save_base(tmp_path / "other", seed=1)
    same = tiny.save_base(tmp_path / "other2", seed=1)
    assert identity(tiny_base) == identity(tiny_base, lora_r=2, learning_rate=1e-3)
    assert len({identity(tiny_base), identity(other), identity(same, load_in_4bit=True)}) == 3
    first = identity(other)
    words = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(words | {"chat_template": "x"}))
    assert identity(other) != first
