"""What looking at losses and gradients adds to a training step: under one percent."""

import time

import pytest
from transformers import TrainerCallback

import toolkit
from tests import tiny
from toolkit.stages.guards import Guard

LIMIT = 0.01
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
KEYS = {
    "max_steps": 5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
    "save_strategy": "no", "report_to": "none",
}  # fmt: skip


@pytest.mark.benchmark
@pytest.mark.parametrize("use_peft", [True, False], ids=["LoRA", "every weight"])
def test_the_guard(use_peft, tmp_path, monkeypatch):
    """Of the processor's time, which other work on the machine does not change."""
    base = tiny.save_base(tmp_path / "base", **SIZES)
    rows = tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)
    spent = {"on_pre_optimizer_step": 0.0, "on_step_end": 0.0}

    def timed(name):
        own = getattr(Guard, name)

        def method(*args, **kwargs):
            begun = time.process_time()
            own(*args, **kwargs)
            spent[name] += time.process_time() - begun

        monkeypatch.setattr(Guard, name, method)

    class Clock(TrainerCallback):
        begun = ended = 0.0

        def on_train_begin(self, *args, **kwargs):
            self.begun = time.process_time()

        def on_train_end(self, *args, **kwargs):
            self.ended = time.process_time()

    for name in spent:
        timed(name)
    clock = Clock()
    toolkit.sft(
        model_name_or_path=str(base), dataset_name=str(rows), output_dir=str(tmp_path / "run"),
        use_peft=use_peft, callbacks=[clock], **KEYS,
    )  # fmt: skip
    share = sum(spent.values()) / (clock.ended - clock.begun)
    print(f"\nthe guard takes {share:.2%} of training ({'LoRA' if use_peft else 'every weight'})")
    assert share < LIMIT
