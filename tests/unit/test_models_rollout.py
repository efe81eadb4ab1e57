"""The loop that samples for learning: what transformers' own gives, with less work."""

import functools

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    MaxLengthCriteria,
    MistralConfig,
    MistralForCausalLM,
    StoppingCriteriaList,
)

from tests import tiny
from toolkit.models import rollout
from toolkit.models.rollout import decode, draw, fast_generation

ENDS = [0, *range(200, 240)]  # random weights end a completion about every sixth token
KEYS = {"pad_token_id": 0, "eos_token_id": ENDS, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout") / "base"
    return AutoModelForCausalLM.from_pretrained(tiny.save_base(folder)).eval()


def asked(copies=4, lengths=(5, 9, 9)):
    """Prompts of uneven length, `copies` of each, padded on the left."""
    draws = torch.Generator().manual_seed(1)
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(1, 200, (length,), generator=draws)
        mask[row, -length:] = 1
    return {
        "input_ids": ids.repeat_interleave(copies, dim=0),
        "attention_mask": mask.repeat_interleave(copies, dim=0),
    }


def both(model, given, **settings):
    """What transformers' loop gives, and what ours does, from one seed."""
    torch.manual_seed(5)
    plain = model.generate(**given, **settings)
    torch.manual_seed(5)
    return plain, fast_generation(model.generate)(**given, **settings)


def as_upstream(monkeypatch):
    """Draw as transformers does, which one seed then makes comparable."""
    monkeypatch.setattr(
        rollout, "draw", lambda scores: torch.multinomial(scores.softmax(-1), 1).squeeze(1)
    )


def counted(model, monkeypatch):
    """The shape of what the model reads, call by call."""
    shapes, forward = [], model.forward

    @functools.wraps(forward)
    def count(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", count)
    return shapes


@pytest.mark.parametrize(
    "more",
    [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 6},
     {"eos_token_id": 256}, {"max_new_tokens": 1}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("lengths", [(9,), (7, 7), (5, 9, 2)], ids=str)
def test_greedy_ids_are_those_of_transformers(model, more, lengths):
    plain, ours = both(model, asked(3, lengths), **KEYS | {"do_sample": False} | more)
    assert torch.equal(plain, ours)


def test_greedy_rows_end_at_different_steps_and_are_dropped(model, monkeypatch):
    given = asked(1, (5, 9, 2, 7, 4, 8))
    plain = model.generate(**given, **KEYS, do_sample=False)
    shapes = counted(model, monkeypatch)
    ours = fast_generation(model.generate)(**given, **KEYS, do_sample=False)
    assert torch.equal(plain, ours)
    rows = [shape[0] for shape in shapes]
    assert len(set(rows)) > 2, rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "more",
    [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}, {"typical_p": 0.5},
     {"repetition_penalty": 1.5, "temperature": 2.0}, {"epsilon_cutoff": 0.01},
     {"eta_cutoff": 0.01}, {"suppress_tokens": [7, 8]}],
    ids=str,
)  # fmt: skip
def test_with_transformers_draws_the_ids_are_its_own(model, monkeypatch, seed, more):
    as_upstream(monkeypatch)
    monkeypatch.setattr(rollout, "DROP", 2.0)  # a row less is another order of draws
    given = asked(4, (5, 9, 9))
    keys = KEYS | {"do_sample": True, "top_k": 0} | more
    torch.manual_seed(seed)
    plain = model.generate(**given, **keys)
    torch.manual_seed(seed)
    ours = fast_generation(model.generate)(**given, **keys)
    assert torch.equal(plain, ours)
    assert (plain[:, -1] == 0).any() or plain.shape[1] < 9 + 24  # some ended before others


def test_dropped_rows_have_what_they_would_have_alone(model, monkeypatch):
    """Each row draws from numbers of its own, so that dropping cannot reorder them."""
    given = asked(4, (5, 9, 9))
    uniform = torch.rand(64, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def run(share):
        monkeypatch.setattr(rollout, "DROP", share)
        length, alive = [0], [list(range(12))]
        monkeypatch.setattr(
            rollout, "_chosen", lambda inputs, rows: (
                alive.append([alive[-1][row] for row in rows]), chosen(inputs, rows))[1],
        )  # fmt: skip

        def own(scores):
            at = uniform[length[0], alive[-1]]
            length[0] += 1
            return torch.searchsorted(scores.softmax(-1).double().cumsum(-1), at[:, None])[:, 0]

        monkeypatch.setattr(rollout, "draw", own)
        return model.generate(**given, **KEYS, do_sample=True, custom_generate=decode), len(alive)

    chosen = rollout._chosen
    never, at_once, at_quarters = run(2.0), run(0.0), run(0.25)
    assert never[1] == 1 < at_quarters[1] < at_once[1]
    assert torch.equal(never[0], at_once[0])
    assert torch.equal(never[0], at_quarters[0])


def test_a_prompt_is_read_once_however_many_copies(model, monkeypatch):
    shapes = counted(model, monkeypatch)
    fast_generation(model.generate)(**asked(4, (5, 9)), **KEYS, do_sample=True)
    assert shapes[0] == (2, 9)
    assert shapes[1][1] == 1


def test_equal_tokens_under_another_mask_are_another_prompt(model):
    given = asked(2, (6, 6))
    given["input_ids"][2:] = given["input_ids"][:2]
    given["input_ids"][:, :2] = 0  # token 0 itself in the one, padding in the other
    given["attention_mask"][2:, :2] = 0
    plain, ours = both(model, given, **KEYS | {"eos_token_id": 256}, do_sample=False)
    assert not torch.equal(plain[0], plain[2])
    assert torch.equal(plain, ours)


def test_draws_have_the_probabilities_of_the_scores():
    torch.manual_seed(3)
    scores = torch.randn(2, 12)
    scores[0, :4] = -torch.inf
    scores[1, -3:] = -torch.inf
    number = 200_000
    found = torch.stack([draw(scores.repeat(number, 1)[row::2]) for row in (0, 1)])
    for row in (0, 1):
        wanted = scores[row].softmax(-1) * number
        seen = found[row].bincount(minlength=12)
        assert (seen[wanted == 0] == 0).all()
        there = wanted > 0
        chi = (((seen - wanted) ** 2) / wanted)[there].sum()
        assert chi < 2.5 * there.sum(), chi  # 8 or 9 classes: over 22 once in 200 times


def test_completions_are_distributed_as_those_of_transformers(model):
    """Two tokens behind one prompt, 6,000 times by each loop; rows are dropped between them."""
    given = {k: v.repeat(6000, 1) for k, v in asked(1, (6,)).items()}
    keys = {"pad_token_id": 0, "max_new_tokens": 2, "do_sample": True, "top_k": 4}
    first = model.generate(**asked(1, (6,)), **keys | {"do_sample": False, "max_new_tokens": 1})
    keys["eos_token_id"] = int(first[0, -1])  # the likeliest one ends it
    plain, ours = both(model, given, **keys)
    marks = [(ids[:, -2] * 1000 + ids[:, -1]).tolist() for ids in (plain, ours)]
    pairs = sorted({*marks[0], *marks[1]})
    assert len(pairs) == 1 + 3 * 4
    chi = 0.0
    for pair in pairs:
        a, b = (mark.count(pair) for mark in marks)
        chi += (a - b) ** 2 / (a + b)
    assert chi < 32, chi  # 12 degrees of freedom: over it once in 700 times; the seed is fixed


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-53, 2)])
def test_the_ends_of_the_numbers_are_tokens_that_can_be(monkeypatch, number, token):
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype: torch.full(shape, number, dtype=dtype))
    scores = torch.tensor([[-torch.inf, 0.3, 0.4, -torch.inf]])
    assert draw(scores).tolist() == [token]


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(RuntimeError, match="probability tensor"):
        draw(torch.tensor([[0.0, torch.nan]]))


def test_rows_are_told_when_they_end_with_their_completion(model):
    given, told = asked(4, (5, 9)), {}

    def ended(rows):
        assert not rows.keys() & told.keys()
        told.update(rows)

    torch.manual_seed(1)
    found = fast_generation(model.generate, ended)(**given, **KEYS, do_sample=True)[:, 9:]
    assert 2 < len(told) < 8  # the last to end are not told apart
    for row, ids in told.items():
        assert ids[-1] in ENDS
        assert not set(ids[:-1]) & set(ENDS)
        assert found[row].tolist() == ids + [0] * (found.shape[1] - len(ids))


CONFIG = GenerationConfig(**KEYS)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_beams": 2, "do_sample": False}, {"return_dict_in_generate": True, "output_scores": True},
        {"cache_implementation": "static"}, {"cache_implementation": "offloaded"},
        {"use_cache": False}, {"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 2},
        {"streamer": object()}, {"assistant_model": object()}, {"pixel_values": torch.zeros(1)},
        {"inputs_embeds": torch.zeros(12, 9, 32)}, {"stop_strings": ["a"]},
        {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(10)])}, {"synced_gpus": True},
        {"custom_generate": decode}, {"past_key_values": None},
    ],
    ids=lambda keys: next(iter(keys)),
)  # fmt: skip
def test_elsewhere_transformers_is_untouched(model, keys):
    given = asked() | KEYS | {"do_sample": True} | keys
    seen = []

    class Model:
        def __getattr__(self, name):
            return getattr(model, name)

        def generate(self, **kwargs):
            seen.append(kwargs)

    fast_generation(Model().generate)(**given)
    assert seen[0].keys() == given.keys()
    assert seen[0].get("custom_generate") is keys.get("custom_generate")


@pytest.mark.parametrize(
    "keys", [{"guidance_scale": 1.5}, {"output_attentions": True}, {"exponential_decay_length_penalty": (3, 1.1)}],
    ids=lambda keys: next(iter(keys)),
)  # fmt: skip
def test_what_counts_rows_or_steps_is_sampled_by_transformers(model, monkeypatch, keys):
    monkeypatch.setattr(rollout, "_read_once", None)
    if "output_attentions" in keys:
        model.set_attn_implementation("eager")
    plain, ours = both(model, asked(), **KEYS | {"do_sample": True} | keys)
    model.set_attn_implementation("sdpa")
    assert torch.equal(plain, ours)


def test_a_sliding_window_is_sampled_by_transformers(monkeypatch):
    monkeypatch.setattr(rollout, "_read_once", None)
    torch.manual_seed(0)
    sliding = MistralForCausalLM(
        MistralConfig(
            vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=8, bos_token_id=None,
        )
    ).eval()  # fmt: skip
    plain, ours = both(sliding, asked(), **KEYS, do_sample=True)
    assert torch.equal(plain, ours)
