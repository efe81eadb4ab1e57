"""The estimate of memory: parts that can be counted exactly, and what must follow from keys."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.models import adapters
from toolkit.models.chatml import TokenizerChange
from toolkit.preflight.asked import Asked
from toolkit.preflight.memory import need
from toolkit.preflight.weighing import Held, weightless
from toolkit.recipe import recipe_from_keywords

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 500, "tie_word_embeddings": True, "dtype": "float32",
}  # fmt: skip
ASKED = Asked(rows=4, length=64)


def stage(name="sft", **keys):
    given = {"model_name_or_path": "x/y", "dataset_name": "x.jsonl", "lora_r": 8} | keys
    if name in ("grpo", "ppo"):
        given |= {"reward_funcs": ["answer"]}
    return recipe_from_keywords(name, **given).stages[0]


def weighed(name="sft", asked=ASKED, device="cpu", **keys):
    return need(stage(name, **keys), LlamaConfig(**SHAPE), asked, device=device)


def test_tensors_are_counted_while_they_live():
    with Held() as held:
        kept = torch.ones(1000)
        gone = torch.ones(500)
        view = kept[:10]
        assert held.now == 6000
        del gone
        assert held.now == 4000
        assert held.peak == 6000
        del kept
        assert held.now == 4000, view.shape


def test_nothing_is_left_changed():
    before = torch.is_autocast_enabled, torch.autocast
    with weightless("cuda"):
        assert torch.ones(3).device.type == "meta"
    assert (torch.is_autocast_enabled, torch.autocast) == before
    assert torch.ones(3).device.type == "cpu"


def test_weights_adapters_and_optimizer_are_exact():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    base = sum(weight.numel() for weight in model.parameters())
    adapted = adapters.attach(model, stage(), TokenizerChange())
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    found = weighed()
    assert found.adapters == found.gradients == 4 * trained
    assert found.optimizer == 8 * trained
    assert 4 * base <= found.base <= 4 * base + 1000  # the rotary frequencies
    assert weighed(dtype="bfloat16").base < 0.52 * found.base
    assert weighed(optim="adamw_8bit").optimizer == 2 * trained
    whole = weighed(use_peft=False)
    assert whole.gradients == 4 * base
    assert whole.adapters == 0


def test_four_bits_take_an_eighth_of_float32():
    linear = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    saved = weighed().base - weighed(load_in_4bit=True).base
    assert saved == linear * 4 - linear // 2 - linear // 64 * 4
    nested = (
        weighed(load_in_4bit=True).base - weighed(load_in_4bit=True, use_bnb_nested_quant=True).base
    )
    assert nested == linear // 64 * 3


def test_activations_follow_batch_length_and_checkpointing():
    one, two = weighed(), weighed(asked=Asked(8, 64))
    assert 1.9 < two.activations / one.activations < 2.1
    assert weighed(gradient_checkpointing=False).activations > 4 * one.activations
    # of a checkpointed layer its input is kept: (B, T, H) in float32
    assert one.activations >= 3 * 4 * 64 * 64 * 4


def test_pairs_are_two_sequences_and_a_reference_runs_beside():
    assert weighed("reward").activations > 1.8 * weighed().activations
    assert weighed("dpo").activations > 1.8 * weighed().activations
    assert weighed("dpo").adapters == 2 * weighed().adapters


def test_rollouts_have_a_cache():
    found = weighed("grpo", Asked(8, 64, completion=32, sampled=16))
    assert found.cache == 16 * 64 * 3 * 2 * 2 * 16 * 4
    assert found.rollout > found.kept + found.cache
    assert found.peak == max(found.rollout, found.training)
    compared = weighed("grpo", Asked(8, 64, completion=32, sampled=16), beta=0.1)
    assert compared.adapters == 2 * found.adapters
    assert weighed("grpo", Asked(8, 64, completion=32, sampled=16), use_vllm=True).cache == 0


def test_ppo_has_a_critic():
    asked = Asked(4, 64, completion=32, sampled=4)
    critic, none = weighed("ppo", asked), weighed("grpo", asked)
    assert critic.gradients == 2 * none.gradients + 4 * 64
    assert critic.activations > 1.5 * none.activations


def test_a_gpu_computes_in_half_precision_and_keeps_float32_weights():
    here, there = weighed(fast=False), weighed(device="cuda")
    assert there.base == here.base
    assert there.gradients == here.gradients
    assert there.logits < here.logits
    half = weighed(device="cuda", dtype="bfloat16")
    assert half.base == pytest.approx(here.base / 2, rel=1e-3)
    assert 0.4 < half.activations / here.activations < 0.7
