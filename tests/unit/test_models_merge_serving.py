"""What other programs read: a Modelfile for Ollama, and adapters by the rules of vLLM's loader."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from toolkit.models.chatml import TokenizerChange, add_chatml
from toolkit.models.ollama import modelfile, turns_of
from toolkit.models.vllm_adapter import vllm_obstacles, vllm_rank

ROOT = Path(__file__).resolve().parents[2]
CHATML_FILE = '''FROM ./model.gguf
TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system
{{ .Content }}<|im_end|>
{{ else if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
"""
PARAMETER stop "<|im_end|>"
'''
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else "
    "m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture
def words():
    tokenizer = tiny.tokenizer()
    add_chatml(tokenizer, TokenizerChange())
    return tokenizer


def with_template(words, template):
    other = copy.deepcopy(words)
    other.chat_template = template
    return other


def test_the_template_that_was_trained_in_go_s_words(words):
    assert modelfile(words, ["<|im_end|>"]) == CHATML_FILE


def test_a_template_without_system_messages_and_with_a_bos_token(words):
    words.add_special_tokens({"bos_token": "<bos>"})
    words = with_template(words, GEMMA)
    turns = turns_of(words)
    assert turns is not None
    assert turns.start == "<bos>"
    assert turns.around == {
        "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
    }
    text = modelfile(words, ["<end_of_turn>"])
    assert text is not None
    assert "<bos>" not in text, "Ollama adds it"
    assert "system" not in text


def test_the_docs_name_one_release_of_the_converter_and_the_file_that_is_written(words):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert re.search(
        r"git clone --depth 1 --branch b\d+ https://github\.com/ggml-org/llama\.cpp", text
    )
    assert "convert_hf_to_gguf.py my-assistant --outfile my-assistant/model.gguf" in text
    assert f"```\n{modelfile(words, ['<|im_end|>'])}```" in text


@pytest.mark.parametrize(
    "template",
    [
        "You help.\n{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}{{ loop.index }} {{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}<{{ m['role'] }}>{% if loop.last %}{{ m['content'] }}{% endif %}"
        "{% endfor %}",
        "{% for m in messages %}{{ '{{' + m['role'] }}>{{ m['content'] }}\n{% endfor %}",
        "{{ raise_exception('never') }}",
    ],
    ids=["words of its own", "numbers", "the last only", "braces", "an error"],
)
def test_what_is_no_row_of_turns_has_no_modelfile(template, words):
    assert modelfile(with_template(words, template), ["x"]) is None


LORA = {
    "peft_type": "LORA", "r": 12, "bias": "none", "use_dora": False, "modules_to_save": None,
    "trainable_token_indices": None, "target_modules": ["q_proj"],
}  # fmt: skip
LAYER = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def adapter_in(directory, *, key=LAYER, **changed):
    (directory / "adapter_config.json").write_text(json.dumps(LORA | changed))
    save_file({key: torch.ones(2, 2)}, directory / "adapter_model.safetensors")
    return directory


def test_an_adapter_of_attention_alone_is_served_by_vllm(tmp_path):
    assert vllm_obstacles(adapter_in(tmp_path)) == []
    assert vllm_rank(tmp_path) == 16
    assert vllm_rank(adapter_in(tmp_path, r=16)) == 16
    assert vllm_rank(adapter_in(tmp_path, r=320)) == 320
    (tmp_path / "adapter_model.safetensors").unlink()
    assert vllm_obstacles(tmp_path) == ["it has no adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "LOHA"}, "LOHA adapter, not LoRA"),
        ({"r": 513}, "rank 513 is above 512"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"rank_pattern": {"q_proj": 4}}, "differs between layers"),
        ({"modules_to_save": ["score"]}, "trains score whole"),
        ({"trainable_token_indices": {"embed_tokens": [257]}}, "rows of added tokens"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "no layer of their own"),
        ({"key": "base_model.model.score.weight"}, "holds base_model.model.score.weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_vllm_refuses_is_known_before(changed, said, tmp_path):
    (found,) = vllm_obstacles(adapter_in(tmp_path, **changed))
    assert said in found
