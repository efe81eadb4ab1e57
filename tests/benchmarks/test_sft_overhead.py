"""What the wrapper costs: the same training by toolkit and by a bare TRL script, step by step.

Interleaved in one process, because absolute times drift; the figure is the median of the ratios.
"""

import os
import statistics
import time

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

import toolkit
from tests import tiny
from toolkit.stages.terminal import ProgressLine

ROUNDS = 9
STEPS = 12
ALLOWED = 1.03


class StepTimes(TrainerCallback):
    """Seconds per optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.begun)


def ours(base, directory):
    trainer = toolkit.build(
        "sft", model_name_or_path=str(base), train_dataset=tiny.ROWS * 8, max_steps=STEPS,
        output_dir=str(directory), lora_r=8, per_device_train_batch_size=8, save_strategy="no",
        logging_steps=1, lora_dropout=0.0,
    )  # fmt: skip
    directory.mkdir(exist_ok=True)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLine(directory / "log.jsonl"))
    return trainer


def bare(base, directory, rows: Dataset):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(260)
    tokens = {"embed_tokens": [257, 258, 259]}
    config = LoraConfig(
        r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM",
        trainable_token_indices=tokens,
    )  # fmt: skip
    args = SFTConfig(
        output_dir=str(directory), use_cpu=True, bf16=False, max_steps=STEPS, logging_steps=1,
        per_device_train_batch_size=8, save_strategy="no", report_to="none", disable_tqdm=True,
        learning_rate=2e-4, max_length=None,
    )  # fmt: skip
    return SFTTrainer(
        get_peft_model(model, config), args, train_dataset=rows, processing_class=tokenizer
    )


@pytest.mark.benchmark
def test_a_step_costs_at_most_three_percent_more_than_trl(tmp_path, capsys):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    base = tiny.save_base(
        tmp_path / "base", hidden_size=256, intermediate_size=704, num_hidden_layers=6
    )
    ratios = []
    for number in range(ROUNDS + 1):
        medians = []
        first = ours(base, tmp_path / "ours")
        pair = [first, bare(base, tmp_path / "bare", first.train_dataset)]
        for trainer in pair if number % 2 else reversed(pair):
            timer = StepTimes()
            trainer.add_callback(timer)
            trainer.train()
            medians.append((trainer is first, statistics.median(timer.seconds[2:])))
        times = dict(medians)
        if number:  # the first round warms up
            ratios.append(times[True] / times[False])
    with capsys.disabled():
        print(
            f"\nours / bare TRL, per step: median {statistics.median(ratios):.3f} "
            f"[{min(ratios):.3f}-{max(ratios):.3f}] over {ROUNDS} rounds of {STEPS} steps"
        )
    assert statistics.median(ratios) <= ALLOWED
