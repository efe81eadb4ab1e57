"""Completions: the same in any batch, drawn from the right distribution, ended where they end."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tests import tiny
from toolkit.errors import DataError, RecipeError, TrainingError
from toolkit.inference import sampling as module
from toolkit.inference.decoding import draw, uniforms
from toolkit.inference.sampling import Prompt, Sampling, TransformersEngine, processors

GREEDY = Sampling(24, temperature=0.0)
DRAWN = Sampling(24, temperature=0.9, top_p=0.95, top_k=100)
WORDS = tiny.tokenizer()


@pytest.fixture
def model(tiny_base):
    return AutoModelForCausalLM.from_pretrained(tiny_base)


def prompts_of(count=12, **changed):
    """Prompts of uneven length."""
    return [
        Prompt(WORDS(f"{index}: " + "why? " * (index % 5)).input_ids, seed=index, **changed)
        for index in range(count)
    ]


def complete(model, prompts, sampling, batch_size=8):
    engine = TransformersEngine(model, WORDS, batch_size=batch_size)
    found = dict(engine.generate(prompts, sampling))
    return [found[index] for index in range(len(prompts))]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(24)], ids=["greedy", "cut", "whole"])
def test_a_completion_does_not_depend_on_its_batch(sampling, model):
    prompts = prompts_of()
    alone = complete(model, prompts, sampling, batch_size=1)
    assert complete(model, prompts, sampling, batch_size=8) == alone
    assert complete(model, prompts[::-1], sampling, batch_size=5)[::-1] == alone
    assert len({tuple(found.input_ids) for found in alone}) > 8, "they must tell prompts apart"


def test_greedy_is_what_transformers_gives_for_a_prompt_alone(model):
    prompts = prompts_of()
    for prompt, found in zip(prompts, complete(model, prompts, GREEDY), strict=True):
        ids = torch.tensor([prompt.input_ids])
        whole = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert whole[0, ids.shape[1] :].tolist() == found.input_ids


def test_a_seed_is_its_own_completion(model):
    ids = WORDS("once").input_ids
    seeds = [Prompt(ids, seed=seed) for seed in (1, 2, 1, 3)]
    first, second, again, third = (found.input_ids for found in complete(model, seeds, DRAWN))
    assert first == again
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    longer = Sampling(40, DRAWN.temperature, DRAWN.top_p, DRAWN.top_k)
    assert complete(model, seeds, longer)[0].input_ids[: len(first)] == first


def test_the_global_generator_is_neither_read_nor_moved(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = complete(model, prompts_of(), DRAWN)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert complete(model, prompts_of(), DRAWN) == one


def expected_probabilities(logits, temperature, top_k, top_p):
    """By the definitions: temperature, then the k likeliest, then the fewest that hold top_p."""
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    order = probabilities.argsort(descending=True)[: top_k or len(logits)]
    kept = probabilities[order] / probabilities[order].sum()
    order = order[kept.cumsum(-1) - kept < top_p]
    cut = torch.zeros_like(probabilities).index_copy(0, order, probabilities[order])
    return cut / cut.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.3, 7, 1.0), (1.0, 0, 0.8), (0.7, 20, 0.9)],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature, top_k, top_p):
    """Every token's count within 5 standard deviations: a false alarm in 30,000 choices of seeds."""
    count = 40_000
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 2
    rows = [Prompt([0], seed=seed) for seed in range(count)]
    sampling = Sampling(1, temperature, top_p, top_k)
    chain = processors(rows, sampling, [1] * count, torch.device("cpu"))
    scores = chain(torch.zeros(count, 1, dtype=torch.long), logits.repeat(count, 1))
    counts = scores.argmax(-1).bincount(minlength=len(logits)).double()
    expected = expected_probabilities(logits, temperature, top_k, top_p)
    assert (counts[expected == 0] == 0).all()
    error = (counts - count * expected).abs()
    assert (error <= 5 * (count * expected * (1 - expected)).sqrt() + 1e-9).all()


def test_a_large_vocabulary_keeps_its_unlikely_tokens():
    vocabulary = 150_000
    tokens = torch.tensor([0, 1, 70_001, 149_998, 149_999])
    between = (tokens.double() + 0.5) / vocabulary
    assert torch.equal(draw(torch.zeros(5, vocabulary), between), tokens)


def test_a_token_of_one_in_a_hundred_million():
    scores = torch.tensor([[1.0, 1e-8]]).log()
    assert draw(scores, torch.tensor([1 - 0.5e-8], dtype=torch.float64)).tolist() == [1]
    assert draw(scores, torch.tensor([1 - 1.5e-8], dtype=torch.float64)).tolist() == [0]


def test_the_ends_of_the_unit_interval():
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, 2.0, -torch.inf]]).repeat(2, 1)
    assert draw(scores, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3]
    assert uniforms([3, 4], 5).shape == (2, 5)
    assert uniforms([3], 5).tolist() == uniforms([9, 3], 300)[1:, :5].tolist()


def test_nothing_of_the_models_own_settings_leaks_in(model):
    clean = complete(model, prompts_of(), GREEDY)
    theirs = GenerationConfig(
        repetition_penalty=3.0, temperature=0.1, do_sample=True, top_k=2, max_length=7,
        min_new_tokens=9, no_repeat_ngram_size=1, suppress_tokens=[5, 6], num_beams=3,
        eos_token_id=0, stop_strings=["a"],
    )  # fmt: skip
    model.generation_config = theirs
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        assert complete(model, prompts_of(), GREEDY) == clean
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    assert model.generation_config is theirs
    assert theirs.repetition_penalty == 3.0


def test_every_stop_token_of_the_model_stops(model):
    (found,) = complete(model, prompts_of(1), GREEDY)
    assert not found.stopped
    assert len(found.input_ids) == 24
    at = next(i for i in range(4, 24) if found.input_ids[i] not in found.input_ids[:i])
    model.generation_config.eos_token_id = [0, found.input_ids[at]]
    (stopped,) = complete(model, prompts_of(1), GREEDY)
    assert stopped.stopped
    assert stopped.input_ids == found.input_ids[: at + 1]
    assert stopped.text == WORDS.decode(found.input_ids[:at], skip_special_tokens=True)


def test_each_row_ends_at_its_own_stop_string(model):
    prompts = prompts_of()
    free = complete(model, prompts, DRAWN)
    string = WORDS.decode(free[3].input_ids[6:8])
    assert string.isascii()
    assert string in free[3].text
    prompts[3] = Prompt(prompts[3].input_ids, 3, (string, "never written"))
    found = complete(model, prompts, DRAWN)
    assert found[:3] + found[4:] == free[:3] + free[4:]
    assert found[3].stopped
    assert found[3].text == free[3].text[: free[3].text.index(string)]
    assert WORDS.decode(found[3].input_ids) == found[3].text + string
    assert complete(model, prompts, DRAWN, batch_size=1) == found


def test_a_prompt_without_room_is_refused_before_anything_is_generated(model):
    ids = [1] * 500
    prompts = [*prompts_of(2), Prompt(ids, where="exam.jsonl, row 3")]
    expected = (
        r"exam\.jsonl, row 3: 500 tokens of prompt and max_completion_length 24 are more than the "
        r"512 positions of the model; lower max_completion_length to 12"
    )
    with pytest.raises(RecipeError, match=expected):
        TransformersEngine(model, WORDS).generate(prompts, GREEDY)
    complete(model, [Prompt(ids)], Sampling(12, temperature=0.0))
    with pytest.raises(RecipeError, match="shorten the prompt"):
        complete(model, [Prompt([1] * 600)], GREEDY)
    with pytest.raises(DataError, match="the prompt has no tokens"):
        complete(model, [Prompt([])], GREEDY)


def test_the_longest_prompts_come_first(model):
    prompts = prompts_of()
    order = [index for index, _ in TransformersEngine(model, WORDS).generate(prompts, GREEDY)]
    lengths = [len(prompts[index].input_ids) for index in order]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(order) == list(range(len(prompts)))


def test_a_model_in_training_is_left_as_it_was(model):
    clean = complete(model, prompts_of(), GREEDY)
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    model.model.layers[0].eval()
    widths = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert complete(model, prompts_of(), GREEDY, batch_size=12) == clean
    assert widths[1:] == [1] * 23, "every step but the first reads one token"
    assert model.training
    assert model.model.layers[1].mlp.training
    assert not model.model.layers[0].mlp.training
    ids = torch.tensor([prompts_of(1)[0].input_ids])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_an_adapter_over_a_four_bit_base(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bit)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.get_base_model().generation_config.repetition_penalty = 3.0
    found = complete(model, prompts_of(), GREEDY)
    assert found == complete(model, prompts_of(), GREEDY, batch_size=1)
    assert "generation_config" not in vars(model)
    assert model.get_base_model().generation_config.repetition_penalty == 3.0
    with model.disable_adapter():
        assert complete(model, prompts_of(), GREEDY) != found


def test_too_little_memory_says_which_key_to_lower(model, monkeypatch):
    def generate(**kwargs):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(model, "generate", generate)
    before = model.generation_config
    with pytest.raises(TrainingError, match=r"20 GiB.*per_device_eval_batch_size"):
        complete(model, prompts_of(), GREEDY)
    assert model.generation_config is before


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_model_of_nan_is_no_model_that_says_nothing(sampling, model):
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="the model gives NaN"):
        complete(model, prompts_of(), sampling)


def test_temperature_zero_draws_nothing(model, monkeypatch):
    monkeypatch.setattr(module, "uniforms", None)
    assert complete(model, prompts_of(2), GREEDY)
