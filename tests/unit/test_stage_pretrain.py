"""A tokenizer and a base from nothing but text and keys."""

import json
import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit
from tests import tiny
from toolkit.errors import DataError, RecipeError

TEXTS = [
    {"text": f"{i} and {i + 1} are {2 * i + 1}. The cat of number {i} sat."} for i in range(80)
]
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def settings(directory, **changed):
    return {
        "train_dataset": TEXTS, "output_dir": str(directory), "config_overrides": SMALL,
        "vocab_size": 300, "max_length": 32, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "num_train_epochs": 4, "logging_steps": 1,
    } | changed  # fmt: skip


def test_a_base_is_made_saved_and_proved(tmp_path):
    result = toolkit.pretrain(**settings(tmp_path))
    assert result.manifest["verification"]["verified"] == "fresh_load"
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert words.chat_template is None
    assert len(words) == model.config.vocab_size <= 300
    assert words.decode(words("12 cats, säter")["input_ids"]) == "12 cats, säter"
    assert words.convert_ids_to_tokens(words("x 127.")["input_ids"])[-1] == "."
    entries = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    log = [entry["loss"] for entry in entries if "loss" in entry]
    assert log[-1] < 0.5 * log[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_before_the_first_step_every_token_is_as_likely(kind, tmp_path):
    overrides = SMALL if kind == "llama" else {"n_embd": 32, "n_layer": 2, "n_head": 2}
    trainer = toolkit.build(
        "pretrain", **settings(tmp_path, model_type=kind, config_overrides=overrides)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = float(trainer.model.eval()(**batch).loss)
    expected = math.log(trainer.model.config.vocab_size)
    assert loss == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_document_attends_to_another(attention, tmp_path):
    trainer = toolkit.build("pretrain", **settings(tmp_path, attn_implementation=attention))
    model: Any = trainer.model
    model.eval()
    inputs = next(iter(trainer.get_train_dataloader()))
    starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 1
    with torch.no_grad():
        before = model(**inputs).logits[0]
        inputs["input_ids"][0, : starts[1]] = 7
        after = model(**inputs).logits[0]
    assert not torch.equal(before[: starts[1]], after[: starts[1]])
    assert torch.equal(before[starts[1] :], after[starts[1] :])
    rest = inputs["input_ids"][:1, starts[1] : [*starts, 32][2]]
    with torch.no_grad():
        alone = model(input_ids=rest).logits[0]
    assert torch.allclose(alone, after[starts[1] : starts[1] + rest.shape[1]], atol=1e-4)


def test_it_is_what_sft_goes_on_from(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    texts = tiny.save_rows(tmp_path / "texts.jsonl", TEXTS)
    chats = tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)
    overrides = SMALL | {"max_position_embeddings": 512}
    recipe.write_text(f"""
output_dir: {tmp_path / "run"}
max_steps: 2
per_device_train_batch_size: 4
stages:
  - {{stage: pretrain, dataset_name: {texts}, config_overrides: {overrides}, max_length: 32}}
  - {{stage: sft, model_name_or_path: {tmp_path / "run" / "pretrain"}, dataset_name: {chats}}}
""")
    result = toolkit.run(recipe)
    assert result.stages["sft"].manifest["verification"]["verified"] == "resident_base"


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"model_type": "lama"}, RecipeError, "no model_type 'lama'; did you mean 'llama'?"),
        (
            {"config_overrides": {"hiden_size": 3}}, RecipeError,
            "the config of llama has no key 'hiden_size'; did you mean 'hidden_size'?",
        ),
        ({"max_length": 128}, RecipeError, "a block has 128 tokens, but the model has 64"),
        ({"train_dataset": tiny.ROWS}, DataError, "pretraining reads documents, a column text"),
        ({"config_overrides": {"hidden_size": 33}}, RecipeError, "33"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_made_is_one_line(changed, error, said, tmp_path):
    with pytest.raises(error, match=said.replace("?", r"\?")):
        toolkit.pretrain(**settings(tmp_path, **changed))


def test_documents_that_change_are_noticed(tmp_path):
    toolkit.pretrain(**settings(tmp_path, max_steps=1))
    with pytest.raises(RecipeError, match="config_overrides"):
        toolkit.pretrain(
            **settings(tmp_path, max_steps=1, config_overrides=SMALL | {"num_hidden_layers": 1})
        )
