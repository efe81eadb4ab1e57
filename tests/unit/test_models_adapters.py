"""Adapters: what is trained, what is saved, and that a damaged file is noticed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny
from toolkit.errors import RecipeError, TrainingError
from toolkit.models import adapters, chatml
from toolkit.models.load import load, load_base, load_tokenizer
from toolkit.recipe import recipe_from_keywords

PROBE = [[5, 6, 7, 8, 257, 9], [10, 258, 11, 12]]


def recipe(base, **keys):
    keys = {"model_name_or_path": str(base), "dataset_name": "x.jsonl", "lora_r": 4} | keys
    return recipe_from_keywords("sft", **keys).stages[0]


def attached(base, **keys):
    words = load_tokenizer(base)
    change = chatml.prepare_tokenizer(words, conversational=True)
    model = AutoModelForCausalLM.from_pretrained(base)
    chatml.fit_embeddings(model, words, change)
    return adapters.attach(model, recipe(base, **keys), change), words


def saved(base, directory):
    torch.manual_seed(1)
    model, words = attached(base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(directory))
    adapters.save_beside(model, words, directory)
    return adapters.log_probabilities(model, PROBE)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_only_the_adapter_and_the_new_rows_are_trained(head, tiny_base, untied_base):
    model, _ = attached(tiny_base if head == "tied" else untied_base)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rows = [name for name in names if "trainable_tokens_delta" in name]
    assert len(rows) == (1 if head == "tied" else 2)
    assert all("lora_" in name for name in names if name not in rows)
    assert not any("lora_" in name and "lm_head" in name for name in names)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_saved_adapter_gives_the_same_numbers(head, tiny_base, untied_base, tmp_path):
    expected = saved(tiny_base if head == "tied" else untied_base, tmp_path)
    proof = adapters.prove(tmp_path, PROBE, expected, device=torch.device("cpu"))
    assert proof["verified"] == "fresh_load"
    assert proof["largest_difference"] < 1e-5
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert not any(t.shape[0] > 200 and "lora" not in k for k, t in tensors.items())  # no matrix


@pytest.mark.parametrize("fault", ["zeroed", "dropped", "nan", "tokens"])
def test_a_damaged_adapter_is_noticed(fault, untied_base, tmp_path):
    expected = saved(untied_base, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if ("trainable_tokens" if fault == "tokens" else "lora_B") in k)
    if fault == "dropped":
        del tensors[key]
    else:
        tensors[key] = tensors[key] * (float("nan") if fault == "nan" else 0.0)
    save_file(tensors, path)
    with (
        pytest.warns(UserWarning, match="missing") if fault == "dropped" else _nothing(),
        pytest.raises(TrainingError, match=key if fault == "nan" else "does not give the numbers"),
    ):
        adapters.prove(tmp_path, PROBE, expected, device=torch.device("cpu"))


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_load_gives_the_model_and_its_stop_token(tiny_base, tmp_path):
    expected = saved(tiny_base, tmp_path)
    model, words = load(tmp_path)
    assert not model.training
    assert words.padding_side == "left"
    assert words.eos_token_id in model.generation_config.eos_token_id
    for found, wanted in zip(adapters.log_probabilities(model, PROBE), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_written_lora_key_that_differs_is_refused(tiny_base, tmp_path):
    saved(tiny_base, tmp_path)
    same = recipe(tiny_base, start_from=str(tmp_path))
    assert adapters.check_continued(same, str(tmp_path))["r"] == 4
    other = recipe(tiny_base, start_from=str(tmp_path), lora_r=8)
    with pytest.raises(RecipeError, match=r"lora_r is 8, but .* has 4"):
        adapters.check_continued(other, str(tmp_path))


def test_another_base_is_refused(tiny_base, untied_base, tmp_path):
    saved(tiny_base, tmp_path)
    with pytest.raises(RecipeError, match="its own base only"):
        adapters.check_continued(recipe(untied_base, start_from=str(tmp_path)), str(tmp_path))


def test_a_folder_without_an_adapter_is_refused(tiny_base):
    with pytest.raises(RecipeError, match=r"holds no adapter_config\.json"):
        adapters.check_continued(recipe(tiny_base, start_from=str(tiny_base)), str(tiny_base))


def test_the_adapter_names_its_base(tiny_base, tmp_path):
    saved(tiny_base, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)
    assert config["task_type"] == "CAUSAL_LM"


def test_an_evaluation_leaves_the_gradients_of_a_four_bit_base(tmp_path):
    """bitsandbytes packs weights for some CPUs at the first evaluation; packed, they pass none."""
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    keys = recipe(base, load_in_4bit=True, lora_dropout=0.0)
    words = load_tokenizer(base)
    change = chatml.prepare_tokenizer(words, conversational=True)
    torch.manual_seed(0)
    model = load_base(keys)
    chatml.fit_embeddings(model, words, change)
    model = adapters.attach(model, keys, change)
    switches = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert switches
    assert not any(module.support_avx512bf16_for_cpu for module in switches)

    def gradients():
        model.zero_grad()
        ids = torch.tensor(PROBE[:1])
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    adapters.log_probabilities(model, PROBE)
    after = gradients()
    assert before.keys() == after.keys()
    assert any("layers.0" in name and value.any() for name, value in before.items())
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_matrices_that_are_trained_whole_need_no_rows(head, tiny_base, untied_base):
    base = tiny_base if head == "tied" else untied_base
    both = ["embed_tokens", "lm_head"]
    if head == "tied":
        with pytest.warns(UserWarning, match="ensure_weight_tying"):
            model, _ = attached(base, lora_modules_to_save=both)
    else:
        model, _ = attached(base, lora_modules_to_save=both)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum("modules_to_save" in name for name in names) == 2
    assert not any("trainable_tokens" in name for name in names)
    with pytest.raises(RecipeError, match=r"name both \(embed_tokens, lm_head\) or none"):
        attached(base, lora_modules_to_save=["lm_head"])
