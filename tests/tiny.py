"""Tiny random bases and data for tests: made in milliseconds, with nothing downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Question {index}: {'what is this? ' * (index % 5 + 1)}"},
            {"role": "assistant", "content": f"Answer {index}{', and so on' * (index % 7)}."},
        ]
    }
    for index in range(24)
]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 bytes and an end-of-text token, without a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: index for index, byte in enumerate(["<|endoftext|>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")


def save_base(directory: Path, *, seed: int = 0, **changed: Any) -> Path:
    """A Llama of two layers with random weights, and its tokenizer, in a folder."""
    words = tokenizer()
    config = LlamaConfig(
        **{
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": None,
            "initializer_range": 0.2,
        }
        | changed
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def save_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_recipe(path: Path, base: Path, data: Path, **changed: Any) -> str:
    """A recipe of stage sft, its run beside it, with keys changed or added; returns where."""
    keys = {
        "stage": "sft", "model_name_or_path": str(base), "dataset_name": str(data),
        "output_dir": str(path.parent / "run"), "max_steps": 60, "lora_r": 4,
        "per_device_train_batch_size": 4,
    } | changed  # fmt: skip
    path.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
    return str(path)
