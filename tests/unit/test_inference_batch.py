"""A batch in which equal prompts are read once and who has ended leaves: still the same tokens."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests import tiny
from toolkit.inference.batch import STEPS, Batch
from toolkit.inference.sampling import Prompt, Sampling, TransformersEngine

WORDS = tiny.tokenizer()
DRAWN = Sampling(30, temperature=0.9)
SMALL = {
    "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
HEADS = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def model(tiny_base):
    return AutoModelForCausalLM.from_pretrained(tiny_base)


def prompts_of(count=4, samples=3):
    """Prompts of uneven length, each of them several times."""
    return [
        Prompt(WORDS(f"{index}: " + "why? " * (index % 3)).input_ids, seed=10 * index + sample)
        for index in range(count)
        for sample in range(samples)
    ]


def complete(model, prompts, sampling, batch_size):
    engine = TransformersEngine(model, WORDS, batch_size=batch_size)
    found = dict(engine.generate(prompts, sampling))
    return [found[index] for index in range(len(prompts))]


@pytest.fixture
def read(model):
    """The shape of what each forward pass reads."""
    shapes = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    return shapes


def with_stops(model, prompts):
    """Every tenth token or so ends a completion."""
    drawn = {token for found in complete(model, prompts, DRAWN, 1) for token in found.input_ids}
    model.generation_config.eos_token_id = [0, *sorted(drawn)[::10]]
    return model


def test_equal_prompts_are_read_once_and_who_has_ended_leaves(model, read):
    prompts = prompts_of()
    with_stops(model, prompts)
    alone = complete(model, prompts, DRAWN, 1)
    lengths = [len(found.input_ids) for found in alone]
    assert min(lengths) < STEPS < max(lengths)
    read.clear()
    assert complete(model, prompts, DRAWN, 12) == alone
    longest = max(len(prompt.input_ids) for prompt in prompts)
    assert read[0] == (4, longest - 1)
    assert all(width == 1 for _, width in read[1:])
    rows = [count for count, _ in read[1:]]
    expected = [
        sum(length > step // STEPS * STEPS for length in lengths) for step in range(max(lengths))
    ]
    assert rows == expected


def test_different_prompts_are_read_at_once(model, read):
    prompts = prompts_of(samples=1)
    complete(model, prompts, DRAWN, 4)
    assert read[0] == (4, max(len(prompt.input_ids) for prompt in prompts))


def test_a_prompt_of_one_token_is_not_cut(model, read):
    prompts = [Prompt([5], seed=1), Prompt([5], seed=2), Prompt([5, 6, 7], seed=3)]
    together = complete(model, prompts, DRAWN, 3)
    assert read[0] == (3, 3)
    assert together == complete(model, prompts, DRAWN, 1)


@pytest.mark.parametrize(
    "kind",
    [
        lambda: MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=8)),
        lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=4)),
        lambda: Qwen3NextForCausalLM(
            Qwen3NextConfig(
                **SMALL, **HEADS, head_dim=8, num_experts=0, linear_num_key_heads=2,
                linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
                layer_types=["linear_attention", "full_attention"],
            )
        ),
    ],
    ids=["window", "state", "both"],
)  # fmt: skip
def test_models_with_other_caches(kind, monkeypatch):
    torch.manual_seed(0)
    model = kind().eval()
    ids = WORDS("once upon a time").input_ids
    seeds = [Prompt(ids, seed=seed) for seed in (1, 2)]
    together = complete(model, seeds, DRAWN, 2)
    monkeypatch.setattr("toolkit.inference.batch.STEPS", 1000)
    assert together == complete(model, seeds, DRAWN, 1)
    assert len(set(together[0].input_ids)) > 5, "it must say something"
    (greedy,) = complete(model, seeds[:1], Sampling(30, temperature=0.0), 1)
    whole = model.generate(
        input_ids=torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    assert greedy.input_ids == whole[0, len(ids) :].tolist()


def test_a_batch_without_a_cache_goes_on_to_the_end():
    batch = Batch([[1, 2], [3]], 0, "cpu")
    assert batch.next_steps(100) == STEPS
    batch.extend(torch.zeros(2, 2 + STEPS, dtype=torch.long), None)
    assert batch.next_steps(100) == 100 - STEPS
    assert batch.mask.tolist() == [[1, 1] + [1] * STEPS, [0, 1] + [1] * STEPS]
    batch.keep([1])
    assert batch.rows == [1]
    assert batch.inputs().keys() == {"input_ids", "attention_mask"}
