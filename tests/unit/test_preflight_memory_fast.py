"""The estimate of memory knows a CPU's fast path: what it keeps, and what it decides."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.test_preflight_memory import SHAPE, stage
from toolkit.models import adapters
from toolkit.models.chatml import TokenizerChange
from toolkit.models.fast import attention
from toolkit.models.fast.switch import speed_up
from toolkit.preflight import weighing_fast
from toolkit.preflight.asked import Asked
from toolkit.preflight.memory import need
from toolkit.stages.fast_path import ROOM, bytes_per_token

CONFIG = LlamaConfig(**SHAPE | {"vocab_size": 5000}, attn_implementation="sdpa")
ASKED = Asked(rows=4, length=64, completion=16, scored=16)


def weighed(name="sft", asked=ASKED, device="cpu", memory=0.0, **keys):
    return need(stage(name, **keys), CONFIG, asked, device=device, memory=memory)


def adapted():
    torch.manual_seed(0)
    return adapters.attach(LlamaForCausalLM(copy.deepcopy(CONFIG)), stage(), TokenizerChange())


def kept(model, ids):
    """Bytes that the backbone's forward pass keeps, its result included, the weights not."""
    own = {weight.untyped_storage()._cdata for weight in [*model.parameters(), *model.buffers()]}
    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.get_base_model().model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
        )
    return sum(seen.values()) + states.last_hidden_state.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("name", "rows", "prompts"), [("sft", 4, 4), ("reward", 8, 4), ("grpo", 4, 1)]
)
def test_activations_are_those_of_rows_without_padding(name, rows, prompts):
    found = weighed(name, replace(ASKED, sampled=4, prompts=prompts), gradient_checkpointing=False)
    model = adapted().train()
    assert speed_up(model.get_base_model()) is None
    ids = torch.randint(5000, (prompts, ASKED.length)).repeat_interleave(rows // prompts, 0)
    ids[:, -ASKED.completion :] = torch.randint(5000, (rows, ASKED.completion))
    assert found.activations == pytest.approx(kept(model, ids), rel=0.03)


def test_under_autocast_frozen_weights_are_kept_in_bfloat16_too():
    found = weighed(gradient_checkpointing=False, bf16=True)
    model = adapted().train()
    assert speed_up(model.get_base_model()) is None
    ids = torch.randint(5000, (ASKED.rows, ASKED.length))
    with torch.autocast("cpu", torch.bfloat16):
        assert found.activations == pytest.approx(kept(model, ids), rel=0.05)


def test_a_rollout_in_bfloat16_holds_all_weights_once_and_none_in_float32():
    half, full = (
        weighed("grpo", replace(ASKED, sampled=4, completion=60), bf16=bf16)
        for bf16 in (True, False)
    )
    embeddings = CONFIG.vocab_size * CONFIG.hidden_size * 4  # which a float32 rollout does not copy
    layers = full.base - embeddings
    expected = (embeddings + layers + full.adapters) / 2 - layers
    passing = 2 * 4 * CONFIG.intermediate_size * CONFIG.hidden_size + embeddings / 2
    assert half.sampling - full.sampling == pytest.approx(expected + passing, rel=0.02)


def test_a_rollout_over_a_base_in_bfloat16_holds_the_layers_twice_where_it_is_merged():
    merged, beside = (
        weighed("grpo", replace(ASKED, sampled=4, completion=60), bf16=bf16, dtype="bfloat16")
        for bf16 in (True, False)
    )
    embeddings = CONFIG.vocab_size * CONFIG.hidden_size * 2
    copies = beside.base - embeddings + beside.adapters / 2
    passing = 2 * 4 * CONFIG.intermediate_size * CONFIG.hidden_size + embeddings
    assert merged.sampling - beside.sampling == pytest.approx(copies + passing, rel=0.02)


def test_prompts_that_are_shared_are_computed_once():
    keys = {"gradient_checkpointing": False}
    alone, shared = (weighed("grpo", replace(ASKED, prompts=n, sampled=4), **keys) for n in (4, 1))
    assert (
        0.4 < shared.activations / alone.activations < 0.6
    )  # (48 + 4 · 16) / (4 · 64) tokens, and keys
    assert (
        weighed("dpo", **keys).activations
        < 0.8 * weighed("dpo", replace(ASKED, completion=0), **keys).activations
    )


def test_the_head_sees_labels_alone(monkeypatch):
    # what it works on at a time is the same for any number
    monkeypatch.setattr(weighing_fast, "STRIP", 1)
    few, all_of_them, upstream = (
        weighed(asked=replace(ASKED, scored=scored), fast=fast)
        for scored, fast in ((16, True), (0, True), (16, False))
    )
    assert 3.5 < all_of_them.logits / few.logits < 4.2
    assert upstream.logits > all_of_them.logits


def test_activations_are_kept_where_the_stage_keeps_them():
    needed = ASKED.rows * ASKED.length * bytes_per_token(adapted())
    plain = weighed()
    enough = plain.base + plain.adapters + needed / ROOM
    assert not weighed(memory=1.02 * enough).checkpointed
    assert weighed(memory=0.98 * enough).checkpointed
    assert weighed(memory=1.02 * enough).activations > 4 * plain.activations
    assert weighed(memory=2 * enough, gradient_checkpointing=True).checkpointed
    assert not weighed(memory=1, gradient_checkpointing=False).checkpointed
    assert weighed(memory=2 * enough, fast=False).checkpointed


def test_elsewhere_nothing_is_different():
    for given in ({"device": "cuda"}, {"attn_implementation": "eager"}, {"use_peft": False}):
        fast, upstream = (weighed(fast=which, **given) for which in (True, False))
        assert fast == upstream, given
    assert weighed(device="cuda", memory=1e12).checkpointed


def test_no_mask_without_memory_stays():
    attention.seen.cache_clear()
    weighed("grpo", replace(ASKED, prompts=1, sampled=4))
    assert attention.seen.cache_info().currsize == 0
