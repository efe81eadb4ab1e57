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
from toolkit.models.proof import Expected, log_probabilities, prove
from toolkit.recipe import recipe_from_keywords

PROBE = [[5, 6, 7, 8, 257, 9], [10, 258, 11, 12]]


def recipe(base, **keys):
    keys = {"model_name_or_path": str(base), "dataset_name": "x.jsonl", "lora_r": 4} | keys
    return recipe_from_keywords("sft", **keys).stages[0]


def attached(base, *, conversational=True, **keys):
    words = load_tokenizer(base)
    change = chatml.prepare_tokenizer(words, conversational=conversational)
    model = AutoModelForCausalLM.from_pretrained(base)
    chatml.fit_embeddings(model, words, change)
    return adapters.attach(model, recipe(base, **keys), change), words


def saved(base, directory, *, conversational=True, **keys):
    torch.manual_seed(1)
    model, words = attached(base, conversational=conversational, **keys)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(directory))
    adapters.save_beside(model, words, directory)
    return log_probabilities(model, PROBE if conversational else [[5, 6, 7]])


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
    proof = prove(tmp_path, Expected(PROBE, expected), device=torch.device("cpu"))
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
        prove(tmp_path, Expected(PROBE, expected), device=torch.device("cpu"))


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
    for found, wanted in zip(log_probabilities(model, PROBE), expected, strict=True):
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
    log_probabilities(model, PROBE)
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


def continued(base, parent, further=()):
    """The parent's copy on its base, and what chats and further tokens added to its tokenizer."""
    words = load_tokenizer(parent)
    change = chatml.prepare_tokenizer(words, conversational=True)
    new = chatml.add_tokens(words, list(further))
    change.added += new
    change.trained += new
    model = AutoModelForCausalLM.from_pretrained(base)
    chatml.fit_embeddings(model, words, change)
    starts = model.get_input_embeddings().weight.detach().clone()
    return adapters.continue_from(model, str(parent), change), words, change, starts


def tensors_of(model, directory):
    model.save_pretrained(str(directory))
    return load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_continued_adapter_starts_as_its_parent(head, tiny_base, untied_base, tmp_path):
    base = tiny_base if head == "tied" else untied_base
    expected = saved(base, tmp_path / "parent")
    model, _, change, _ = continued(base, tmp_path / "parent")
    assert not change.trained
    for found, wanted in zip(log_probabilities(model, PROBE), expected, strict=True):
        assert torch.equal(found, wanted)
    theirs = load_file(tmp_path / "parent" / "adapter_model.safetensors")
    ours = tensors_of(model, tmp_path / "copy")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == len(theirs)


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("first", ["text", "chats"])
def test_tokens_that_came_later_are_trained_too(head, first, tiny_base, untied_base, tmp_path):
    """Of the parent every number stays; the new rows start where the base has them."""
    base = tiny_base if head == "tied" else untied_base
    saved(base, tmp_path / "parent", conversational=first == "chats")
    model, words, change, starts = continued(base, tmp_path / "parent", further=["<think>"])
    assert len(change.added) == (1 if first == "chats" else 3)
    theirs = load_file(tmp_path / "parent" / "adapter_model.safetensors")
    ours = tensors_of(model, tmp_path / "copy")
    rows = [key for key in ours if "trainable_tokens_delta" in key]
    assert len(rows) == (1 if head == "tied" else 2)
    for key, value in theirs.items():
        assert torch.equal(ours[key][: len(value)], value), key
        assert key in rows or ours[key].shape == value.shape
    embedding = next(key for key in rows if "embed_tokens" in key)
    assert torch.equal(ours[embedding][-len(change.added) :], starts[sorted(change.added)])
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    held = json.loads((tmp_path / "parent" / "adapter_config.json").read_text())
    for name, ids in (held["trainable_token_indices"] or {}).items():
        assert config["trainable_token_indices"][name][: len(ids)] == ids
    for ids in config["trainable_token_indices"].values():
        assert set(change.trained) <= set(ids)
    assert config["base_model_name_or_path"] == str(base)
    assert all(w.requires_grad for n, w in model.named_parameters() if "trainable_tokens" in n)
    adapters.save_beside(model, words, tmp_path / "copy")
    probe = [[*PROBE[0], *change.added]]
    expected = log_probabilities(model, probe)
    proof = prove(tmp_path / "copy", Expected(probe, expected), device=torch.device("cpu"))
    assert proof["largest_difference"] == 0


def test_a_parent_without_rows_of_its_own_takes_new_ones(tmp_path):
    base = tiny.save_base(tmp_path / "base", pad_token_id=5)
    words = load_tokenizer(base)
    words.pad_token = words.convert_ids_to_tokens(5)
    words.save_pretrained(base)
    saved(base, tmp_path / "parent", conversational=False)
    theirs = load_file(tmp_path / "parent" / "adapter_model.safetensors")
    assert not any("trainable_tokens" in key for key in theirs)
    model, _, change, starts = continued(base, tmp_path / "parent")
    ours = tensors_of(model, tmp_path / "copy")
    (new,) = ours.keys() - theirs.keys()
    assert torch.equal(ours[new], starts[change.added])
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("spare", [0, 40])
def test_matrices_trained_whole_grow_with_the_vocabulary(spare, tmp_path):
    """The parent's matrices are kept row by row, except rows that no token had yet."""
    base = tiny.save_base(tmp_path / "base", tie_word_embeddings=False, vocab_size=257 + spare)
    both = ["embed_tokens", "lm_head"]
    saved(base, tmp_path / "parent", conversational=False, lora_modules_to_save=both)
    model, _, change, starts = continued(base, tmp_path / "parent")
    ours = tensors_of(model, tmp_path / "copy")
    theirs = load_file(tmp_path / "parent" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    key = next(key for key in ours if "embed_tokens" in key)
    kept = [row for row in range(len(theirs[key])) if row not in change.added]
    assert len(kept) >= 258
    assert torch.equal(ours[key][kept], theirs[key][kept])
    assert torch.equal(ours[key][change.added], starts[change.added])


def test_a_parent_that_cannot_take_new_rows_is_refused(untied_base, tmp_path):
    words = load_tokenizer(untied_base)
    model = AutoModelForCausalLM.from_pretrained(untied_base)
    keys = recipe(untied_base, lora_modules_to_save=["lm_head"])
    model = adapters.attach(model, keys, chatml.TokenizerChange())
    model.save_pretrained(str(tmp_path))
    words.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"start_from: .* cannot learn the tokens .* name both"):
        continued(untied_base, tmp_path)


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_resident_proof_reads_the_files_and_leaves_no_trace(
    head, damaged, tiny_base, untied_base, tmp_path
):
    base = tiny_base if head == "tied" else untied_base
    saved(base, tmp_path)
    model, *_ = continued(base, tmp_path)
    expected = log_probabilities(model.train(), PROBE)
    if damaged:
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        save_file({key: value * 0.5 for key, value in tensors.items()},
                  tmp_path / "adapter_model.safetensors")  # fmt: skip
    next(weight for weight in model.parameters() if weight.requires_grad).requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    device = torch.device("cpu")
    if damaged:
        with pytest.raises(TrainingError, match="does not give the numbers"):
            prove(tmp_path, Expected(PROBE, expected), device=device, resident=model)
    else:
        proof = prove(tmp_path, Expected(PROBE, expected), device=device, resident=model)
        assert proof["verified"] == "resident_base"
    assert model.training
    assert list(model.peft_config) == model.active_adapters == ["default"]
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    for found, wanted in zip(log_probabilities(model, PROBE), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora_modules_to_save": ["nope"]}, r"lora_modules_to_save: this model has no 'nope'; it has .*norm"),
        ({"lora_target_modules": ["q_proj", "nope"]}, r"lora_target_modules: this model has no 'nope'; it has .*q_proj"),
        ({"lora_target_parameters": ["x"]}, r"lora_target_parameters: this model has no 'x'; it has .*q_proj\.weight"),
        ({"lora_target_modules": ["lm_head"]}, "LoRA on lm_head would never be trained"),
        ({"lora_target_modules": ["norm"]}, "LoRA cannot be put on this model"),
        ({"lora_target_modules": ["embed_tokens"]}, "rows of added tokens must be trained"),
    ],
)  # fmt: skip
def test_a_name_that_this_model_does_not_have_is_refused(keys, message, tiny_base):
    with pytest.raises(RecipeError, match=message) as error:
        attached(tiny_base, **keys)
    assert "\n" not in str(error.value)


def test_one_target_module_is_a_name(tiny_base, tmp_path):
    saved(tiny_base, tmp_path, lora_target_modules=["q_proj"])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum("q_proj.lora_A" in key for key in tensors) == 2
    same = recipe(tiny_base, start_from=str(tmp_path), lora_target_modules=["q_proj"])
    assert adapters.check_continued(same, str(tmp_path))["target_modules"] == ["q_proj"]
    other = recipe(tiny_base, start_from=str(tmp_path), lora_modules_to_save=["norm"])
    with pytest.raises(RecipeError, match="lora_modules_to_save is"):
        adapters.check_continued(other, str(tmp_path))


def test_a_model_in_memory_is_the_one_that_the_recipe_names(tiny_base, untied_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    adapters.check_given(recipe(tiny_base), model)
    with pytest.raises(RecipeError, match="the model that was given comes from"):
        adapters.check_given(recipe(untied_base), model)


def test_another_kind_of_adapter_is_refused(tiny_base, tmp_path):
    saved(tiny_base, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(RecipeError, match="expected a LoRA adapter, found IA3"):
        adapters.check_continued(recipe(tiny_base, start_from=str(tmp_path)), str(tmp_path))
