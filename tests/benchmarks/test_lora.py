"""What LoRA's updates gain that are added in place: every second step of a training is PEFT's own."""

import statistics
import sys
import time

import pytest
from peft.tuners.lora.layer import Linear
from transformers import TrainerCallback

import toolkit
from tests.benchmarks.cpu_rows import SHAPES, rows_of, settings_of
from tests.benchmarks.scaling import words
from toolkit.models.fast.lora import add_in_place
from toolkit.models.fast.replaced import bring_back

pytestmark = pytest.mark.benchmark
SHAPE = SHAPES["22M"]
STEPS = 26


class InTurn(TrainerCallback):
    """The processor's seconds of steps with updates in place, as they are at first, and of PEFT's."""

    def __init__(self, model):
        self.model, self.in_place, self.seconds = model, True, {True: [], False: []}

    def on_step_begin(self, *_, **__):
        self.begun = time.process_time()

    def on_step_end(self, *_, **__):
        self.seconds[self.in_place].append(time.process_time() - self.begun)
        if self.in_place:
            for layer in self.model.modules():
                if type(layer) is Linear:
                    bring_back(layer)
        else:
            add_in_place(self.model)
        self.in_place = not self.in_place


@pytest.mark.parametrize("bf16", [False, True])
def test_updates_added_in_place(tmp_path, bf16):
    trainer = toolkit.build(
        "sft", model_name_or_path=str(SHAPE.save(tmp_path / "base")), bf16=bf16, lora_r=16,
        train_dataset=rows_of("sft", SHAPE, STEPS, words()), output_dir=str(tmp_path / "run"),
        lora_dropout=0.0, **settings_of("sft", SHAPE, STEPS),
    )  # fmt: skip
    turns = InTurn(trainer.model)
    trainer.add_callback(turns)
    trainer.train()
    pairs = zip(turns.seconds[True], turns.seconds[False], strict=True)
    gain = statistics.median([theirs / ours for ours, theirs in pairs][1:])  # the first warm up
    kind = "bfloat16" if bf16 else "float32"
    sys.stdout.write(f"\nupdates in place, {kind}: {gain:.2f} times as fast a step\n")
    assert gain >= 1.05
