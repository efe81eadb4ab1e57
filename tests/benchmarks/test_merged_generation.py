"""How much faster a generation is on the CPU with the adapter inside the base's weights."""

import statistics
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from toolkit.data.synthetic import DEMO_BASE
from toolkit.models.merging import merged

ROUNDS = 5


def seconds(model, ids):
    """How long 64 completions of 64 tokens take."""
    start = time.perf_counter()
    model.generate(ids, min_new_tokens=64, max_new_tokens=64, do_sample=True, pad_token_id=0)
    return time.perf_counter() - start


@pytest.mark.benchmark
def test_a_merged_generation_is_faster(capsys):
    base = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, settings).eval()
    ids = torch.randint(10, 800, (64, 32), generator=torch.Generator().manual_seed(0))
    seconds(model, ids)
    ratios = []
    for _ in range(ROUNDS):  # interleaved, so that a busy machine slows both
        beside = seconds(model, ids)
        with merged(model):
            ratios.append(beside / seconds(model, ids))
    ratio = statistics.median(ratios)
    with capsys.disabled():
        sys.stdout.write(f"\na merged generation: {ratio:.2f} times as fast (median of {ROUNDS})\n")
    assert ratio > 1
