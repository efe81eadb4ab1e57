"""Scalars over a causal base: what they are, in which precision, and what is on disk."""

import inspect
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from tests import tiny, tiny_ppo
from tests.closeness import assert_close
from toolkit.errors import RecipeError
from toolkit.models.heads import (
    SCORE,
    add_head,
    add_scalar_heads,
    load_scalar_adapter,
    save_scalar_adapter,
)
from toolkit.models.switching import adapter_weights, through, train_only
from toolkit.models.value import VALUE, add_value_adapter, load_value, value_weights

IDS = torch.tensor([[5, 6, 7, 258, 9, 10, 257]])


@pytest.fixture(params=["tied", "untied"])
def base(request, tiny_base, untied_base):
    return tiny_base if request.param == "tied" else untied_base


def with_value(base, *, fused: bool = False, **keys: Any) -> Any:
    """A policy and a critic that differs from it, with a head that is not zero."""
    model, _ = tiny_ppo.policy(base, lora_dropout=0.0, **keys)
    if fused:
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy"))
    add_scalar_heads(model)
    add_value_adapter(model)
    train_only(model, value_weights(model))
    tiny_ppo.stir(model, 0.05)
    return model.eval()


@torch.no_grad()
def scalars(model: Any, name: str = VALUE, **inputs: Any) -> torch.Tensor:
    return model(**({"input_ids": IDS} | inputs), scalar_head=name)


def test_a_new_critic_is_the_policy_with_a_head_of_zeros(base):
    model, _ = tiny_ppo.policy(base, lora_dropout=0.0)
    before = tiny_ppo.held(model)
    add_scalar_heads(model)
    add_value_adapter(model)
    assert torch.equal(scalars(model), torch.zeros(IDS.shape))
    policy, value = adapter_weights(model, "default"), adapter_weights(model, VALUE)
    assert all(torch.equal(weight, policy[place]) for place, weight in value.items())
    tied = model.get_base_model().config.tie_word_embeddings
    missing = policy.keys() - value.keys()  # a critic has no output matrix
    assert len(missing) == (0 if tied else 1)
    assert all("lm_head" in place for place in missing)
    assert all(
        torch.equal(weight, before[n]) for n, weight in tiny_ppo.held(model).items() if n in before
    )
    assert {weight.dtype for weight in value_weights(model)} == {torch.float32}


def test_scalars_are_the_head_over_the_adapters_hidden_states(base):
    model = with_value(base)
    with torch.no_grad(), through(model, VALUE):
        hidden = model.get_base_model().model(input_ids=IDS).last_hidden_state
    expected = hidden[0] @ model.scalar_heads[VALUE].weight[0]
    assert_close(scalars(model)[0], expected.detach(), tolerance=1e-6)


def test_one_pass_gives_log_probabilities_and_scalars(base):
    model = with_value(base, fused=True)
    with torch.no_grad():
        both = model(input_ids=IDS, labels=IDS, fused_lm_head=True, scalar_head=VALUE)
        alone = model(input_ids=IDS, labels=IDS, fused_lm_head=True)
        logits = model(input_ids=IDS).logits
    assert torch.equal(both.log_probs, alone.log_probs)
    assert torch.equal(both.entropy, alone.entropy)
    assert torch.equal(both.scalars, scalars(model))
    chosen = logits.log_softmax(-1)[:, :-1].gather(2, IDS[:, 1:, None])[..., 0]
    assert_close(alone.log_probs, chosen, tolerance=1e-5)


def test_padding_on_the_left_changes_nothing(base):
    model = with_value(base)
    filled = torch.nn.functional.pad(IDS, (5, 0), value=259)
    mask = torch.nn.functional.pad(torch.ones_like(IDS), (5, 0))
    found = scalars(model, input_ids=filled, attention_mask=mask)[:, 5:]
    assert_close(found, scalars(model), tolerance=1e-5)


def test_generation_goes_through_the_policy(base):
    model = with_value(base)
    assert "input_ids" in inspect.signature(model.get_base_model().forward).parameters
    found = model.generate(IDS, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        assert found[0, IDS.shape[1]] == model(input_ids=IDS).logits[0, -1].argmax()


def test_scalars_are_float32_under_autocast(base):
    model = with_value(base)
    with torch.autocast("cpu", torch.bfloat16):
        found = scalars(model)
        with torch.no_grad(), through(model, VALUE):
            hidden = model.get_base_model().model(input_ids=IDS).last_hidden_state
    assert found.dtype == torch.float32
    expected = hidden[0].float() @ model.scalar_heads[VALUE].weight[0]
    assert torch.equal(found[0], expected.detach())
    assert_close(found / 10, scalars(model) / 10, tolerance=1e-2)


def test_a_head_computes_in_the_precision_that_it_is_held_in(base):
    """DeepSpeed's and continuous batching's bfloat16 take the heads with them."""
    model = with_value(base)
    expected = scalars(model)
    found = scalars(model.to(torch.bfloat16))
    assert found.dtype == torch.float32
    assert_close(found / 10, expected / 10, tolerance=1e-2)


def test_heads_that_came_first_stay(base):
    model = with_value(base)
    before = scalars(model)
    heads = add_scalar_heads(model)
    assert heads is model.scalar_heads
    add_head(model, "other", torch.ones(1, 32))
    model.add_adapter("other", model.peft_config[VALUE])
    assert torch.equal(scalars(model), before)
    assert not torch.equal(scalars(model, "other"), before)


def test_a_saved_critic_is_a_sequence_classifier_for_plain_peft(base, tmp_path):
    model = with_value(base)
    expected = scalars(model)
    save_scalar_adapter(model, VALUE, tmp_path)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    plain.resize_token_embeddings(260, mean_resizing=False)
    plain.config.pad_token_id = 259
    classifier = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    with torch.no_grad():
        found = classifier(input_ids=IDS).logits[0]
    assert_close(found, expected[0, -1:], tolerance=1e-5)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert SCORE in held
    assert not any("lm_head" in name or name.endswith("embed_tokens.weight") for name in held)


def test_a_saved_critic_comes_back(base, tmp_path):
    model = with_value(base)
    expected = scalars(model)
    save_scalar_adapter(model, VALUE, tmp_path)
    beside, _ = tiny_ppo.policy(base, lora_dropout=0.0)
    before = tiny_ppo.held(beside)
    add_scalar_heads(beside)
    load_scalar_adapter(beside, str(tmp_path), "reward")
    assert torch.equal(scalars(beside, "reward"), expected)
    assert all(torch.equal(beside.get_parameter(name), held) for name, held in before.items())
    tiny_ppo.stir(model, 0.05)
    assert not torch.equal(scalars(model), expected)
    load_value(model, tmp_path)
    assert torch.equal(scalars(model), expected)


def test_what_has_no_head_is_refused(tiny_base, tmp_path):
    model, _ = tiny_ppo.policy(tiny_base)
    model.save_pretrained(str(tmp_path))
    add_scalar_heads(model)
    with pytest.raises(RecipeError, match=r"has no score head .*name what stage reward has made"):
        load_scalar_adapter(model, str(tmp_path), "reward")


def test_what_fits_another_base_is_refused(tiny_base, tmp_path):
    save_scalar_adapter(with_value(tiny_base), VALUE, tmp_path)
    wide = tiny.save_base(tmp_path / "wide", hidden_size=64)
    model, _ = tiny_ppo.policy(wide)
    add_scalar_heads(model)
    with pytest.raises(RecipeError, match=r"does not fit the base of this stage: .*size mismatch"):
        load_scalar_adapter(model, str(tmp_path), "reward")


@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying:UserWarning")
def test_a_critic_beside_matrices_trained_whole(untied_base, tmp_path):
    """It has an embedding of its own, and no output matrix, for which DDP would wait."""
    model = with_value(untied_base, lora_modules_to_save=["embed_tokens", "lm_head"])
    names = {name.partition(".modules_to_save.")[0] for name in adapter_weights(model, VALUE)}
    assert any(name.endswith("embed_tokens") for name in names)
    assert not any("lm_head" in name for name in names)
    save_scalar_adapter(model, VALUE, tmp_path)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(untied_base, num_labels=1)
    plain.resize_token_embeddings(260, mean_resizing=False)
    plain.config.pad_token_id = 259
    classifier = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    with torch.no_grad():
        assert_close(classifier(input_ids=IDS).logits[0], scalars(model)[0, -1:], tolerance=1e-5)


@pytest.mark.parametrize("start", ["policy", "reward"])
@pytest.mark.parametrize("keys", [{"use_dora": True}, {"use_rslora": True},
                                  {"lora_target_modules": ["q_proj", "v_proj"]}], ids=str)  # fmt: skip
def test_other_kinds_of_lora(keys, start, tiny_base, tmp_path):
    model = with_value(tiny_base, **keys)
    expected = scalars(model)
    save_scalar_adapter(model, VALUE, tmp_path)
    fresh = with_value(tiny_base, **keys)
    if start == "reward":
        load_scalar_adapter(fresh, str(tmp_path), "reward")
        assert torch.equal(scalars(fresh, "reward"), expected)
    else:
        tiny_ppo.stir(fresh, 0.05)
        load_value(fresh, tmp_path)
        assert torch.equal(scalars(fresh), expected)
