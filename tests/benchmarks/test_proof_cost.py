"""What the proof costs at the end of a stage, beside one plain load of the base.

In seconds of the processor, which do not depend on what else the machine does.
"""

import statistics
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

import toolkit
from tests import tiny
from toolkit.models.digests import changed_base, start_of
from toolkit.models.proof import LOG_PROBABILITIES, expect, prove
from toolkit.stages.finish import PROBE_SEQUENCES, PROBE_TOKENS

ROUNDS = 5
ALLOWED_S = 3.0
WIDE = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 8,
}  # fmt: skip


def seconds(what):
    """Of the processor, that a call takes."""
    start = time.process_time()
    what()
    return time.process_time() - start


@pytest.mark.benchmark
def test_a_proof_costs_one_load_and_three_seconds(tmp_path, capsys):
    base, run = tiny.save_base(tmp_path / "base", **WIDE), tmp_path / "run"
    toolkit.sft(
        model_name_or_path=str(base), train_dataset=tiny.ROWS, output_dir=str(run), max_steps=1,
        per_device_train_batch_size=2, learning_rate=1e-3, lora_r=16, lr_scheduler_type="constant",
    )  # fmt: skip
    model, _ = toolkit.load(run, device="cpu")
    probe = [list(range(5, 5 + PROBE_TOKENS))] * PROBE_SEQUENCES
    start, expected = start_of(model, ["default"]), expect(model, probe, LOG_PROBABILITIES)
    steps = {
        "load": lambda: AutoModelForCausalLM.from_pretrained(base),
        "prove": lambda: prove(run, expected, device=torch.device("cpu")),
        "note": lambda: (expect(model, probe, LOG_PROBABILITIES), start_of(model, ["default"])),
        "base": lambda: changed_base(start, model),
    }
    found = {name: [seconds(step) for _ in range(ROUNDS)] for name, step in steps.items()}
    cost = {name: statistics.median(times) for name, times in found.items()}
    whole = cost["prove"] + cost["note"] + cost["base"]
    with capsys.disabled():
        size = (base / "model.safetensors").stat().st_size / 1e6
        sys.stdout.write(
            f"\na base of {size:,.0f} MB in float32: a plain load takes {cost['load']:.2f} s, the "
            f"proof {cost['prove']:.2f} s ({cost['prove'] / cost['load']:.0f} times), with what is "
            f"noted before and after training {whole:.2f} s (medians of {ROUNDS}, "
            f"{torch.get_num_threads()} thread)\n"
        )
    assert whole <= cost["load"] + ALLOWED_S
