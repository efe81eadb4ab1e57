"""What parts of the fast path gain: every second step of a training does without one of them."""

import statistics
import sys
import time

import pytest
import torch
from peft.tuners.lora.layer import Linear
from transformers import TrainerCallback

import toolkit
from tests.benchmarks.cpu_rows import SHAPES, rows_of, settings_of
from tests.benchmarks.scaling import words
from toolkit.models.fast import head
from toolkit.models.fast.lora import add_in_place
from toolkit.models.fast.replaced import bring_back

pytestmark = [pytest.mark.benchmark, pytest.mark.parametrize("bf16", [False, True])]
SHAPE = SHAPES["22M"]
STEPS = 26


class InTurn(TrainerCallback):
    """The processor's seconds of steps with a part, as they are at first, and without it."""

    def __init__(self, turn):
        self.turn, self.on, self.seconds = turn, True, {True: [], False: []}

    def on_step_begin(self, *_, **__):
        self.begun = time.process_time()

    def on_step_end(self, *_, **__):
        self.seconds[self.on].append(time.process_time() - self.begun)
        self.on = not self.on
        self.turn(self.on)


def gain(folder, name, bf16, turn_of) -> float:
    """How many times as fast a step of sft is; what turns the part on and off is made for the model."""
    trainer = toolkit.build(
        "sft", model_name_or_path=str(SHAPE.save(folder / "base")), bf16=bf16, lora_r=16,
        train_dataset=rows_of("sft", SHAPE, STEPS, words()), output_dir=str(folder / "run"),
        lora_dropout=0.0, **settings_of("sft", SHAPE, STEPS),
    )  # fmt: skip
    turns = InTurn(turn_of(trainer.model))
    trainer.add_callback(turns)
    trainer.train()
    pairs = zip(turns.seconds[True], turns.seconds[False], strict=True)
    found = statistics.median([without / own for own, without in pairs][1:])  # the first warm up
    kind = "bfloat16" if bf16 else "float32"
    sys.stdout.write(f"\n{name}, {kind}: {found:.2f} times as fast a step\n")
    return found


def test_updates_added_in_place(tmp_path, bf16):
    def turn_of(model):
        def turn(on):
            if on:
                return add_in_place(model)
            for layer in model.modules():
                if type(layer) is Linear:
                    bring_back(layer)

        return turn

    assert gain(tmp_path, "updates in place", bf16, turn_of) >= 1.05


def whole(fold):
    """Of a tile as a whole, entropies are a product of matrices, for which no third tile is needed."""

    def of_a_tile(logits, *given):
        *_, found = given
        others = {name: tensor for name, tensor in found.items() if name != "entropy"}
        slope = fold(logits, *given[:-1], others)
        product = torch.bmm(slope[:, None, :], logits[:, :, None])[:, 0, 0]
        found["entropy"].copy_(product - found["log_probs"])
        return slope

    return of_a_tile


def test_a_head_in_strips(tmp_path, bf16, monkeypatch):
    strip, fold = head.STRIP, head.fold

    def turn_of(model):
        def turn(on):
            monkeypatch.setattr(head, "STRIP", strip if on else head.TILE)
            monkeypatch.setattr(head, "fold", fold if on else whole(fold))

        return turn

    # in float32 the products of matrices are a larger part
    assert gain(tmp_path, "head in strips", bf16, turn_of) >= (1.05 if bf16 else 1.0)
