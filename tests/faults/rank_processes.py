"""One of several processes of an SFT stage, of which one fails in its third step.

python -m tests.faults.rank_processes FAULT BASE ROWS OUTPUT_DIR
"""

import os
import signal
import sys
import time

from transformers import TrainerCallback

import toolkit
from toolkit import cli
from toolkit.stages.sft_trainer import TokenExactSFTTrainer

FAULTY = 1  # the rank that fails
PATIENCE_S = 8


class Fault(TrainerCallback):
    """Fails at the beginning of a step."""

    def __init__(self, kind: str):
        self.kind = kind

    def on_step_begin(self, args, state, control, **kwargs):
        rank = int(os.environ["RANK"])
        if state.global_step != 2:
            return
        if self.kind == "sigterm" and rank == 0:  # sent to one of them alone
            signal.raise_signal(signal.SIGTERM)
        if rank != FAULTY:
            return
        if self.kind == "raises":
            raise AssertionError("a fault of this process")
        if self.kind == "dies":
            os._exit(9)
        if self.kind == "hangs":
            time.sleep(10_000)


class Poisoned(TokenExactSFTTrainer):
    """Its loss is not finite in the third step of one process."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        spoilt = int(os.environ["RANK"]) == FAULTY and self.state.global_step == 2
        return loss * float("nan") if spoilt else loss


def fault(words: list[str]) -> int:
    """The stage, as a command of the toolkit, so that its end is that of one."""
    kind, base, rows, output_dir = words
    toolkit.sft(
        model_name_or_path=base, dataset_name=rows, output_dir=output_dir, lora_r=4, max_steps=4,
        per_device_train_batch_size=4, save_steps=1, save_strategy="steps", ddp_timeout=PATIENCE_S,
        callbacks=[Fault(kind)], trainer_class=Poisoned if kind == "nan" else TokenExactSFTTrainer,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    cli.COMMANDS["fault"] = fault
    sys.exit(cli.main(["fault", *sys.argv[1:]]))
