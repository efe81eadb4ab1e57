"""A base without a chat template, stop token or pad token of its own gets them, and no more."""

import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from toolkit.models import chatml
from toolkit.models.load import load_tokenizer


def test_a_base_without_template_gets_chatml_and_a_pad_that_is_not_the_stop():
    words = tiny.tokenizer()
    change = chatml.prepare_tokenizer(words, conversational=True)
    assert words.eos_token == "<|im_end|>"
    assert words.pad_token_id not in (None, words.eos_token_id)
    assert len(words) == 257 + 3
    assert sorted(change.added) == [257, 258, 259] == sorted(change.trained)
    text = words.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_text_needs_no_template():
    words = tiny.tokenizer()
    change = chatml.prepare_tokenizer(words, conversational=False)
    assert words.chat_template is None
    assert words.eos_token == "<|endoftext|>"
    assert words.pad_token == "<|pad|>"
    assert len(change.added) == 1


def test_the_template_begins_with_bos_where_the_tokenizer_does(stories):
    words = load_tokenizer(stories)
    chatml.prepare_tokenizer(words, conversational=True)
    ids = words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=True)["input_ids"]
    assert ids[0] == words.bos_token_id
    assert ids.count(words.bos_token_id) == 1


def test_known_tokens_are_trained_but_not_added():
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    change = chatml.prepare_tokenizer(words, conversational=True)
    assert change.added == [words.pad_token_id]
    assert set(change.trained) == {257, 258, words.pad_token_id}


def test_new_rows_start_at_the_mean_of_the_others(tiny_base, untied_base):
    for base in (tiny_base, untied_base):
        words = load_tokenizer(base)
        change = chatml.prepare_tokenizer(words, conversational=True)
        model = AutoModelForCausalLM.from_pretrained(base)
        old = [
            model.get_input_embeddings().weight.detach().clone(),
            model.get_output_embeddings().weight.detach().clone(),
        ]
        chatml.fit_embeddings(model, words, change)
        new = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        for before, after in zip(old, new, strict=True):
            assert torch.equal(after[:257], before)
            for row in change.added:
                assert torch.allclose(after[row], before.mean(0), atol=1e-6)
        assert (new[0] is new[1]) == model.config.tie_word_embeddings


def test_the_matrix_never_shrinks(tmp_path):
    base = tiny.save_base(tmp_path / "padded", vocab_size=320)
    words = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    chatml.fit_embeddings(model, words, chatml.prepare_tokenizer(words, conversational=True))
    assert model.get_input_embeddings().weight.shape[0] == 320


def test_the_token_that_ends_a_turn_ends_a_generation(tiny_base):
    """A base may stop documents with one token while its template ends turns with another."""
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    words.pad_token = "<|im_end|>"
    words.chat_template = chatml.CHATML.replace("{BOS}", "")
    change = chatml.prepare_tokenizer(words, conversational=True)
    assert not change.added
    chatml.stop_at(words, "<|im_end|>", change)
    stop = words.convert_tokens_to_ids("<|im_end|>")
    assert change.stops == [stop]
    assert words.eos_token == "<|endoftext|>"
    assert words.pad_token_id not in {stop, words.eos_token_id}
    assert any("ends a turn with <|im_end|>" in note for note in change.notes)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    chatml.fit_embeddings(model, words, change)
    assert model.generation_config.eos_token_id == [words.eos_token_id, stop]
    chatml.stop_at(words, "<|endoftext|>", change)
    chatml.stop_at(words, "no token", change)
    assert change.stops == [stop]
