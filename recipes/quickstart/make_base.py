"""Pretrain the base checkpoint of the quickstart: the weights in toolkit/data/demo_base.

    python recipes/quickstart/make_base.py OUTPUT_DIR

A Llama of 416 thousand weights reads documents about an invented world and nothing else: no chat,
no question with its answer, no token that ends a turn. It takes some four minutes on one CPU core.
The script fails, and writes nothing, unless the base has learned at least 99 % of the world's facts.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from toolkit.data import synthetic

STEPS, WARMUP_STEPS = 2000, 50
BATCH_SIZE, SEQUENCE_LENGTH = 16, 128
MUON_LR, ADAMW_LR = 0.02, 3e-3
LEAST_RECALL = 0.99


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with one special token, the one that ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(synthetic.documents(seed), 3000), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def build_model(vocab_size: int) -> LlamaForCausalLM:
    """The architecture; eager attention is the fastest at this size on a CPU."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=264,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Documents laid end to end and cut into sequences, shape (B, T)."""
    buffer: list[int] = []
    for document in synthetic.documents(seed):
        buffer += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
        while len(buffer) >= BATCH_SIZE * SEQUENCE_LENGTH:
            taken, buffer = (
                buffer[: BATCH_SIZE * SEQUENCE_LENGTH],
                buffer[BATCH_SIZE * SEQUENCE_LENGTH :],
            )
            yield torch.tensor(taken).view(BATCH_SIZE, SEQUENCE_LENGTH)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Muon on the matrices, AdamW on embeddings and norms, cosine decay after a short warm-up."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    optimizers = (
        (torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.05), MUON_LR),
        (torch.optim.AdamW(others, lr=ADAMW_LR, weight_decay=0.0), ADAMW_LR),
    )
    started = time.monotonic()
    for step, input_ids in enumerate(itertools.islice(batches(tokenizer, seed), STEPS)):
        scale = min(1, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, learning_rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * scale
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s")


@torch.no_grad()
def recall(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of all facts that the base completes greedily at the beginning of a document."""
    known = asked = 0
    for person in (person for half in synthetic.people() for person in half):
        for attribute, value in person.facts.items():
            sentence = "<|endoftext|>" + person.answer(attribute)
            prompt = sentence.removesuffix(f" {value}.")
            start = len(tokenizer(prompt)["input_ids"])
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
            predicted = model(ids).logits[0, start - 1 : -1].argmax(-1)
            known += torch.equal(predicted, ids[0, start:])
            asked += 1
    return known / asked


def main() -> None:
    """Train, check, save in half precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(arguments.seed)
    model = build_model(len(tokenizer))
    train(model, tokenizer, arguments.seed + 1)
    # what is checked is what is saved: half precision and back
    model = model.half().float().eval()
    learned = recall(model, tokenizer)
    print(f"facts learned: {learned:.1%}")
    if learned < LEAST_RECALL:
        sys.exit(f"expected at least {LEAST_RECALL:.0%}; train longer or take another seed")
    model.half().save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
