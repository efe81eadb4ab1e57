"""A stage whose model FSDP2 shards over CPU processes: `accelerate launch fsdp_processes.py FAULT STAGE …`.

PyTorch shards on a CPU with gloo, but accelerate 1.15 (state.py) asks for an accelerator first. It is
told that there is one; what is sharded, gathered, saved and proved is not touched.
"""

import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from toolkit import cli
from toolkit.models import adapters, sharded

FAULTS = ("none", "tensor", "numbers", "lost")


def believe_in_an_accelerator() -> None:
    """Let FSDP be used where only the CPU is."""
    upstream = PartialState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        upstream(self, *args, **kwargs)
        if self.distributed_type is DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init  # pyright: ignore[reportAttributeAccessIssue]


def plant(fault: str) -> None:
    """Have the saved file hold other weights than were trained, or lack one."""
    upstream = adapters.save_beside
    if fault in ("numbers", "lost"):  # the digests would tell before any number is compared
        sharded.check_file = lambda *args: None

    def save_beside(model: Any, tokenizer: Any, directory: Path) -> None:
        upstream(model, tokenizer, directory)
        file = directory / "adapter_model.safetensors"
        tensors = {
            key: tensor * (1.5 if "lora_B" in key else 1) for key, tensor in load_file(file).items()
        }
        if fault == "lost":
            tensors.pop(next(key for key in tensors if "lora_B" in key))
        save_file(tensors, file)

    if fault != "none":
        adapters.save_beside = save_beside


if __name__ == "__main__":
    believe_in_an_accelerator()
    plant(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
