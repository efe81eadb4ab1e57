"""Models, tokenizers and callbacks that Python lends to a stage, and gets back as they were."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import toolkit
from tests import tiny
from toolkit.errors import RecipeError
from toolkit.models.proof import log_probabilities

PROBE = [[5, 6, 7, 8, 9, 10]]


@pytest.fixture
def model(tiny_base):
    return AutoModelForCausalLM.from_pretrained(tiny_base)


def sft(directory, **given):
    settings = {
        "train_dataset": tiny.ROWS, "output_dir": str(directory), "max_steps": 2, "logging_steps": 1,
        "lora_r": 4, "learning_rate": 1e-2,
    } | given  # fmt: skip
    return toolkit.sft(**settings)


def test_objects_go_where_a_recipe_takes_names(model, tmp_path):
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    result = sft(
        tmp_path, model=model, processing_class=tiny.tokenizer(), eval_dataset=tiny.ROWS[:4],
        callbacks=[Count()],
    )  # fmt: skip
    assert steps == [1, 2]
    assert result.manifest["verification"]["verified"] == "resident_base"
    assert result.metrics["eval_loss"] > 0


def test_a_model_comes_back_as_it_was(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    expected = log_probabilities(model, PROBE)
    settings = model.generation_config.to_dict(), model.config.to_dict()
    sft(tmp_path, model=model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(log_probabilities(model, PROBE)[0], expected[0])
    assert (model.generation_config.to_dict(), model.config.to_dict()) == settings
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_same_model_twice_trains_the_same(model, tmp_path, capsys):
    one = sft(tmp_path / "a", model=model)
    other = sft(tmp_path / "b", model=model)
    assert one.metrics["loss"] == other.metrics["loss"]
    capsys.readouterr()
    sft(tmp_path / "a", model=model)
    assert "finished already" in capsys.readouterr().out


def test_a_tokenizer_stays_as_it_was(model, tmp_path):
    words = tiny.tokenizer()
    sft(tmp_path, model=model, processing_class=words)
    assert (len(words), words.chat_template, words.eos_token) == (257, None, "<|endoftext|>")


def test_the_tokenizer_is_that_from_where_the_model_came(model, tiny_base, tmp_path):
    sft(tmp_path / "a", model=model)
    sft(tmp_path / "b", model=str(tiny_base))
    model.name_or_path = ""
    with pytest.raises(RecipeError, match="give processing_class too"):
        sft(tmp_path / "c", model=model)


def test_full_fine_tuning_trains_the_model_itself(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    result = sft(tmp_path, model=model, use_peft=False, lora_r=16)
    assert result.manifest["verification"]["verified"] == "fresh_load"
    assert not torch.equal(model.state_dict()["lm_head.weight"][:257], before["lm_head.weight"])


def test_a_model_with_an_adapter_is_no_base(model, tmp_path):
    sft(tmp_path / "a", model=model)
    adapted, words = toolkit.load(tmp_path / "a")
    with pytest.raises(RecipeError, match="give the base, and the adapter's folder as start_from"):
        sft(tmp_path / "b", model=adapted, processing_class=words)


def test_callbacks_are_a_list(model, tmp_path):
    with pytest.raises(RecipeError, match="callbacks: expected a list, found TrainerCallback"):
        sft(tmp_path, model=model, callbacks=TrainerCallback())
