"""The policy inside the base's weights while it samples, in the base's precision or another."""

import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny, tiny_ppo
from toolkit.models.merging import held_in, merge_while_generating, merged
from toolkit.preflight.weighing import Held


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("merging") / "base")


def policy(
    folder, target="all-linear", attention_bias=False, dtype: torch.dtype = torch.float32, **more
):
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attention_bias=attention_bias)
    config = LoraConfig(r=4, target_modules=target, task_type="CAUSAL_LM", **more)
    model = get_peft_model(base, config).eval()
    tiny_ppo.stir(model, 0.05)
    return model


IDS = {"input_ids": torch.arange(5, 17).view(2, 6), "attention_mask": torch.ones(2, 6).long()}
KEYS = IDS | {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 256}


def sampled_in(model):
    """The precision of the logits that each forward pass of a generation computes."""
    seen = []
    base = model.get_base_model()
    base.lm_head.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    return seen


@pytest.mark.parametrize(
    "more", [{}, {"modules_to_save": ["norm"]}, {"trainable_token_indices": [7, 8]}], ids=str
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@torch.no_grad()
def test_the_policys_weights_are_its_own_afterwards(folder, more, dtype):
    model = policy(folder, **more)
    places = dict(model.named_parameters())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain, logits = model.generate(**KEYS), model(**IDS).logits
    merge_while_generating(model, dtype=dtype)
    seen = sampled_in(model)
    found = model.generate(**KEYS)
    assert set(seen) == {dtype or torch.float32}
    if dtype is None:
        assert torch.equal(found, plain)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(places[name] is weight for name, weight in model.named_parameters())
    assert torch.equal(model(**IDS).logits, logits)


@torch.no_grad()
def test_in_half_precision_the_policy_is_rounded_once(folder):
    model = policy(folder)
    wanted = model(**IDS).logits
    base = model.get_base_model()
    with merged(model, dtype=torch.bfloat16), held_in(base, torch.bfloat16):
        found = base(**IDS).logits
        tied = base.lm_head.weight is base.model.embed_tokens.weight
    assert tied
    assert found.dtype == torch.bfloat16
    assert (found - wanted).norm() / wanted.norm() < 0.02
    assert (found - wanted).abs().max() > 1e-4


@torch.no_grad()
def test_over_a_base_in_half_precision_it_is_rounded_once_too(folder):
    models = [policy(folder, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    half, full = models
    full.load_state_dict(half.state_dict())  # which a base of float32 holds as they are
    said = []
    for model in models:
        base = model.get_base_model()
        with merged(model, dtype=torch.bfloat16), held_in(base, torch.bfloat16):
            said.append(base(**IDS).logits)
    assert torch.equal(*said)


@torch.no_grad()
def test_a_base_in_half_precision_is_merged_where_the_run_computes_so(folder):
    def products(**how):
        model = policy(folder, dtype=torch.bfloat16)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        merge_while_generating(model, **how)
        used = []
        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                module.register_forward_hook(lambda *_: used.append(1))
        model.generate(**KEYS)
        assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
        return len(used)

    assert products(dtype=torch.bfloat16) == 0
    assert products(dtype=None) > 0
    assert products(dtype=torch.bfloat16, fast=False) > 0


@torch.no_grad()
def test_in_half_precision_nothing_is_held_twice(folder):
    model = policy(folder)
    base = model.get_base_model()
    weights = {id(w): w for w in base.parameters()}.values()
    with Held() as held, merged(model, dtype=torch.bfloat16), held_in(base, torch.bfloat16):
        gc.collect()
        # the weights themselves are seen too
        assert held.now == sum((4 + 2) * weight.numel() for weight in weights)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@torch.no_grad()
def test_a_head_that_shares_its_matrix_leaves_the_embeddings_alone(folder):
    model = policy(folder, target=["lm_head", "q_proj"])
    base = model.get_base_model()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    wanted = model(**IDS).logits
    with merged(model):
        assert base.lm_head.weight is not base.model.embed_tokens.weight
        assert torch.allclose(base(**IDS).logits, wanted, atol=1e-5)
    assert torch.equal(model(**IDS).logits, wanted)


@torch.no_grad()
def test_a_trained_bias_is_no_part_of_the_base_afterwards(folder):
    model = policy(folder, lora_bias=True, attention_bias=True, target=["q_proj"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = model(**IDS).logits
    with merged(model):
        assert torch.allclose(model.get_base_model()(**IDS).logits, wanted, atol=1e-5)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_weights_are_back_after_an_error(folder):
    model = policy(folder)
    places = list(model.named_parameters())
    merge_while_generating(model, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(**KEYS | {"max_new_tokens": -1})
    assert all(a is b for (_, a), (_, b) in zip(places, model.named_parameters(), strict=True))


def test_not_fast_is_transformers_own_in_the_bases_precision(folder, monkeypatch):
    monkeypatch.setattr("toolkit.models.rollout.decode", None)
    model = policy(folder)
    merge_while_generating(model, fast=False, dtype=torch.bfloat16)
    seen = sampled_in(model)
    model.generate(**KEYS)
    assert set(seen) == {torch.float32}
