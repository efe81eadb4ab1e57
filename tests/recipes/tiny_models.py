"""Random models of a few thousand weights, built like the real ones that the recipes name.

The architecture, its ratios, what is tied, the special tokens and the kind of chat template are the
real model's; only the sizes are small. To add a model: add its entry to `MODELS`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def smollm2(vocab_size: int) -> PreTrainedConfig:
    """SmolLM2-360M: 15 query heads on 5 key-value heads, tied embeddings."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=60,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=15,
        num_key_value_heads=5,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def qwen2(heads: int, positions: int) -> Callable[[int], PreTrainedConfig]:
    """Qwen2.5 of 0.5B and 1.5B: biases in query, key and value alone, two key-value heads, tied."""

    def config(vocab_size: int) -> PreTrainedConfig:
        return Qwen2Config(
            vocab_size=vocab_size + 13,  # the real matrix, too, has rows that no token uses
            hidden_size=4 * heads,
            intermediate_size=24 * heads,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )

    return config


def qwen3(vocab_size: int) -> PreTrainedConfig:
    """Qwen3-4B-Base: four query heads to a key-value head, heads wider than hidden/heads, tied."""
    return Qwen3Config(
        vocab_size=vocab_size + 13,  # the real matrix, too, has rows that no token uses
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


# Hub id: (config, special tokens in the order of their ids, what names them, chat template)
MODELS: dict[
    str, tuple[Callable[[int], PreTrainedConfig], list[str], dict[str, str], str | None]
] = {
    "HuggingFaceTB/SmolLM2-360M": (
        smollm2,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
        None,
    ),
    "Qwen/Qwen3-4B-Base": (
        qwen3,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "qwen3.jinja",
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": (
        qwen2(heads=14, positions=32768),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "qwen2_5.jinja",
    ),
    "Qwen/Qwen2.5-1.5B": (
        qwen2(heads=12, positions=131072),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "qwen2_5.jinja",
    ),
    "Qwen/Qwen2.5-Math-1.5B": (
        qwen2(heads=12, positions=4096),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "qwen2_5.jinja",
    ),
}


def write_tiny_model(hub_id: str, folder: Path, texts: Iterable[str]) -> Path:
    """Write a random model and its tokenizer as the Hub would have them, and return the folder."""
    config_of, special, named, template = MODELS[hub_id]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    if template is not None:
        fast.chat_template = (TEMPLATES / template).read_text(encoding="utf-8")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(len(fast)), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
