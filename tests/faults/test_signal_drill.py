"""SIGTERM at random moments, and again, until the run is done: it is the run that was never stopped.

TOOLKIT_DRILL_ROUNDS and TOOLKIT_DRILL_SEED set how many runs, and which moments.
"""

import os
import random
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from tests import tiny

ROUNDS = int(os.environ.get("TOOLKIT_DRILL_ROUNDS", "5"))
SEED = int(os.environ.get("TOOLKIT_DRILL_SEED", "0"))
STEPS = 12


def sft(base, rows, directory):
    return toolkit.sft(
        model_name_or_path=str(base), dataset_name=str(rows), output_dir=str(directory), lora_r=4,
        lora_dropout=0.1, max_steps=STEPS, save_strategy="no", per_device_train_batch_size=4,
        learning_rate=1e-2,
    )  # fmt: skip


@pytest.mark.slow
def test_sigterm_until_it_is_done(tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)
    began = time.monotonic()
    whole = sft(tiny_base, rows, tmp_path / "whole")
    takes = time.monotonic() - began
    expected = load_file(whole.output_dir / "adapter_model.safetensors")
    chance, codes = random.Random(SEED), []
    for number in range(ROUNDS):
        run = tmp_path / f"run-{number}"
        for _ in range(50):
            timer = threading.Timer(
                chance.uniform(0, takes), os.kill, (os.getpid(), signal.SIGTERM)
            )
            # what comes between two runs would end pytest
            before = signal.signal(signal.SIGTERM, lambda *_: None)
            timer.start()
            try:
                sft(tiny_base, rows, run)
                break
            except KeyboardInterrupt as stop:
                codes.append(getattr(stop, "exit_code", None))
            finally:
                timer.cancel()
                timer.join()
                signal.signal(signal.SIGTERM, before)
        found = load_file(run / "adapter_model.safetensors")
        assert all(torch.equal(found[key], value) for key, value in expected.items()), number
    assert codes
    assert set(codes) == {143}
