"""Reward models: one score per sequence, a head that is trained and saved, and where it starts."""

import json

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import tiny
from tests.unit.test_models_adapters import saved as saved_causal
from toolkit.errors import RecipeError, TrainingError
from toolkit.models import adapters, chatml, reward
from toolkit.models.load import base_arguments, load, load_tokenizer
from toolkit.models.proof import Expected, prove
from toolkit.recipe import recipe_from_keywords

SEQUENCES = [[5, 6, 7, 8, 9], [10, 11], [12] * 9, [257, 14, 258, 15], [5, 6, 7, 8, 0]]
CPU = torch.device("cpu")


def recipe(base, **keys):
    keys = {"model_name_or_path": str(base), "dataset_name": "x.jsonl", "lora_r": 4} | keys
    return recipe_from_keywords("reward", **keys).stages[0]


def scorer(base, *, conversational=True, parent=None, **keys):
    """A reward adapter as a stage makes it, and its tokenizer."""
    words = load_tokenizer(parent or base)
    change = chatml.prepare_tokenizer(words, conversational=conversational)
    wanted = recipe(base, **keys)
    model = reward.load_reward_base(wanted)
    reward.fit_reward_base(model, words, change)
    if parent:
        return reward.continue_from(model, str(parent), change), words
    return reward.attach(model, wanted, change), words


def moved(model, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def saved(base, directory, *, sequences=SEQUENCES, **keys):
    """A reward adapter that has learnt something, on disk, and its scores."""
    model, words = scorer(base, **keys)
    moved(model).save_pretrained(str(directory))
    adapters.save_beside(model, words, directory)
    return reward.probe_scores(model, sequences)


def numbers(scores):
    return torch.cat(scores)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_only_lora_the_new_rows_and_the_head_are_trained(head, tiny_base, untied_base):
    model, _ = scorer(tiny_base if head == "tied" else untied_base)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    heads = [name for name in trained if "score" in name]
    rows = [name for name in trained if "trainable_tokens_delta" in name]
    assert heads == ["base_model.model.score.modules_to_save.default.weight"]
    assert len(rows) == 1
    assert all("lora_" in name for name in trained if name not in [*heads, *rows])
    assert all(parameter.dtype == torch.float32 for parameter in trained.values())


def test_the_layers_are_those_of_an_adapter_over_the_causal_model(tiny_base, tmp_path):
    saved(tiny_base, tmp_path / "reward")
    saved_causal(tiny_base, tmp_path / "sft")
    keys = [
        set(load_file(tmp_path / name / "adapter_model.safetensors")) for name in ("reward", "sft")
    ]
    assert keys[0] - keys[1] == {"base_model.model.score.weight"}
    assert not keys[1] - keys[0]


def test_a_new_head_makes_every_pair_a_tie(tiny_base):
    model, _ = scorer(tiny_base)
    assert numbers(reward.probe_scores(model, SEQUENCES)).tolist() == [0.0] * len(SEQUENCES)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_what_is_saved_gives_the_same_scores(head, tiny_base, untied_base, tmp_path):
    expected = saved(tiny_base if head == "tied" else untied_base, tmp_path)
    found = prove(tmp_path, Expected(SEQUENCES, expected), device=CPU, check=reward.SCORES)
    assert found["verified"] == "fresh_load"
    assert found["largest_difference"] < 1e-5
    assert float(numbers(expected).std()) > 0.1
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert not (tmp_path / "generation_config.json").exists()


def test_plain_libraries_give_the_same_scores(tmp_path):
    """Where the base has rows to spare, as most have: transformers alone makes no room for tokens."""
    path = tiny.save_base(tmp_path / "base", vocab_size=264)
    expected = numbers(saved(path, tmp_path))
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    loaded = [
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1),
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1),
        PeftModel.from_pretrained(base, tmp_path),
    ]
    for model in loaded:
        with torch.no_grad():
            scores = [model(torch.tensor([ids])).logits[0] for ids in SEQUENCES]
        assert not model.training
        assert float((numbers(scores) - expected).abs().max()) < 1e-5, type(model)


def test_peft_makes_room_for_added_tokens(tiny_base, tmp_path):
    saved(tiny_base, tmp_path)
    model, words = reward.load_reward_model(str(tmp_path))
    ids = words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=True)["input_ids"]
    assert max(ids) >= 257
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    with torch.no_grad():
        expected = float(plain(torch.tensor([ids])).logits)
    assert model.score([ids])[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("fault", ["zeroed", "dropped", "nan"])
def test_a_damaged_head_is_noticed(fault, tiny_base, tmp_path):
    expected = saved(tiny_base, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.score.weight"
    factor = {"zeroed": 0.0, "nan": float("nan"), "dropped": 1.0}[fault]
    tensors[key] = tensors[key] * factor
    if fault == "dropped":
        del tensors[key]
    save_file(tensors, path)
    error, words = {
        "zeroed": (TrainingError, "scores differ by"),
        "nan": (TrainingError, "holds NaN"),
        "dropped": (RecipeError, "no score head"),
    }[fault]
    with pytest.raises(error, match=words):
        prove(tmp_path, Expected(SEQUENCES, expected), device=CPU, check=reward.SCORES)


def test_neither_padding_nor_neighbours_change_a_score(tiny_base):
    model = moved(scorer(tiny_base)[0]).eval()
    judge = reward.RewardModel(model, reward.active_head(model.get_base_model()).weight)
    alone = [judge.score([ids])[0] for ids in SEQUENCES]
    for size in (1, 2, 5):
        assert judge.score(SEQUENCES, size) == pytest.approx(alone, abs=1e-5)
    left = torch.tensor([[0, 0, 0, *SEQUENCES[0]], [0, 0, 0, *SEQUENCES[4]]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    with torch.no_grad():
        assert judge(left, mask).tolist() == pytest.approx([alone[0], alone[4]], abs=1e-5)
    assert judge.score([]) == []
    with pytest.raises(ValueError, match="at least one token"):
        judge.score([[5], []])


def test_a_sequence_that_ends_with_the_pad_token_is_read_to_its_end(tiny_base):
    """transformers' own looks for the last token that is not the pad token."""
    model, words = scorer(tiny_base)
    pad = words.pad_token_id
    moved(model).eval()
    rows = torch.tensor([[5, 6, 7, pad], [5, 6, 7, 8]])
    mask = torch.ones_like(rows)
    with torch.no_grad():
        ours = model(input_ids=rows, attention_mask=mask).logits[:, 0]
        vars(model.get_base_model()).pop("forward")
        theirs = model(input_ids=rows, attention_mask=mask).logits[:, 0]
    reward.read_last(model.get_base_model())
    expected = numbers(reward.probe_scores(model, rows.tolist()))
    assert ours.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert float((theirs - expected)[0].abs()) > 1e-2
    assert float((theirs - expected)[1].abs()) < 1e-5


def test_scores_are_float32_over_a_bfloat16_base(tmp_path):
    base = tiny.save_base(tmp_path / "base", dtype="bfloat16")
    AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16").save_pretrained(base)
    model, words = scorer(base)
    assert model.get_base_model().model.layers[0].input_layernorm.weight.dtype == torch.bfloat16
    moved(model).save_pretrained(str(tmp_path / "out"))
    adapters.save_beside(model, words, tmp_path / "out")
    rows = torch.tensor(SEQUENCES[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
    assert score.dtype == torch.float32
    expected = reward.probe_scores(model, SEQUENCES)
    found = prove(tmp_path / "out", Expected(SEQUENCES, expected), device=CPU, check=reward.SCORES)
    assert found["largest_difference"] < 1e-5


def test_the_head_of_a_four_bit_base_is_whole(tmp_path):
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    keys = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    model, words = scorer(base, **keys)
    assert reward.active_head(model.get_base_model()).weight.dtype == torch.float32
    moved(model).save_pretrained(str(tmp_path / "out"))
    adapters.save_beside(model, words, tmp_path / "out")
    expected = reward.probe_scores(model, SEQUENCES)
    found = prove(
        tmp_path / "out", Expected(SEQUENCES, expected), device=CPU, check=reward.SCORES,
        **base_arguments(recipe(base, **keys)),
    )  # fmt: skip
    assert found["largest_difference"] < 1e-5


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_causal_adapter_is_continued_with_a_new_head(head, tiny_base, untied_base, tmp_path):
    base = tiny_base if head == "tied" else untied_base
    saved_causal(base, tmp_path)
    model, _ = scorer(base, parent=tmp_path)
    parent = load_file(tmp_path / "adapter_model.safetensors")
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    for key, tensor in parent.items():
        if "lm_head" in key:
            continue
        name = key.replace(".weight", ".default.weight")
        name = name if name in before else f"{key}.default"
        assert torch.equal(before.pop(name), tensor), key
    assert {name: float(value.detach().abs().max()) for name, value in before.items()} == {
        "base_model.model.score.modules_to_save.default.weight": 0.0
    }
    config = model.peft_config["default"]
    assert (config.task_type, config.modules_to_save) == ("SEQ_CLS", ["score"])
    assert config.base_model_name_or_path == str(base)


def test_whole_matrices_of_a_causal_adapter_go_on(untied_base, tmp_path):
    saved_causal(untied_base, tmp_path, lora_modules_to_save=["embed_tokens", "lm_head"])
    model, _ = scorer(untied_base, parent=tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens"
    now = model.get_parameter(f"{key}.modules_to_save.default.weight")
    assert torch.equal(now, held[f"{key}.weight"])
    assert model.peft_config["default"].modules_to_save == ["embed_tokens", "score"]


def test_a_reward_adapter_is_continued_with_its_head(tiny_base, tmp_path):
    expected = saved(tiny_base, tmp_path / "one")
    model, words = scorer(tiny_base, parent=tmp_path / "one")
    assert torch.equal(numbers(reward.probe_scores(model, SEQUENCES)), numbers(expected))
    model.save_pretrained(str(tmp_path / "two"))
    adapters.save_beside(model, words, tmp_path / "two")
    config = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score"], "PEFT adds to the list with every load"
    prove(tmp_path / "two", Expected(SEQUENCES, expected), device=CPU, check=reward.SCORES)


def test_tokens_that_come_later_are_trained_with_the_copy(tiny_base, tmp_path):
    few = SEQUENCES[:3]
    expected = saved(tiny_base, tmp_path, conversational=False, sequences=few)
    model, _ = scorer(tiny_base, parent=tmp_path)
    assert torch.equal(numbers(reward.probe_scores(model, few)), numbers(expected))
    (rows,) = [p for n, p in model.named_parameters() if "trainable_tokens_delta" in n]
    assert rows.shape[0] == 3


def test_lora_is_not_put_on_the_head(tiny_base):
    with pytest.raises(RecipeError, match="score is trained whole"):
        scorer(tiny_base, lora_target_modules=["q_proj", "score"])
    model, _ = scorer(tiny_base, lora_target_modules=r".*(q_proj|score)")
    assert not any("score" in name and "lora_" in name for name, _ in model.named_parameters())
    with pytest.raises(RecipeError, match=r"this model has no 'q_prj'; it has .*q_proj"):
        scorer(tiny_base, lora_target_modules=["q_prj"])


def test_a_whole_reward_model_is_loaded_too(tiny_base, tmp_path):
    words = load_tokenizer(tiny_base)
    change = chatml.prepare_tokenizer(words, conversational=True)
    model = reward.load_reward_base(recipe(tiny_base, use_peft=False))
    reward.fit_reward_base(model, words, change)
    moved(model).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    expected = reward.probe_scores(model, SEQUENCES)
    found = prove(
        tmp_path, Expected(SEQUENCES, expected), device=CPU, check=reward.SCORES, dtype="auto"
    )
    assert found["largest_difference"] < 1e-5
    again = reward.load_reward_base(recipe(tmp_path))
    assert torch.equal(numbers(reward.probe_scores(again, SEQUENCES)), numbers(expected))


def test_a_causal_model_is_no_reward_model(tiny_base, tmp_path):
    with pytest.raises(RecipeError, match=r"found no score\.weight in it"):
        reward.load_reward_model(str(tiny_base))
    saved_causal(tiny_base, tmp_path)
    with pytest.raises(RecipeError, match="no score head"):
        reward.load_reward_model(str(tmp_path))


def test_a_reward_adapter_is_no_causal_model(tiny_base, tmp_path):
    saved(tiny_base, tmp_path)
    with pytest.raises(RecipeError, match="judges and does not speak; its scores come from"):
        load(tmp_path)


def test_a_model_in_memory_must_give_one_score(tiny_base):
    with pytest.raises(RecipeError, match=r"found LlamaForCausalLM; load it with AutoModelFor"):
        reward.check_reward_base(AutoModelForCausalLM.from_pretrained(tiny_base))
    two = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2)
    with pytest.raises(RecipeError, match="with 2 labels"):
        reward.check_reward_base(two)
    one = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1)
    assert reward.check_reward_base(one) is None


def test_nothing_is_said_of_the_head_that_is_made(untied_base, tmp_path, caplog):
    saved(untied_base, tmp_path)
    reward.load_reward_model(str(tmp_path))
    assert "LOAD REPORT" not in caplog.text
    AutoModelForSequenceClassification.from_pretrained(untied_base, num_labels=1)
    assert "LOAD REPORT" in caplog.text
