"""Post-training on the Hugging Face stack: one frozen base, LoRA adapters, one recipe.

Everything here loads what it needs when it is called; importing the package loads no torch.
"""

import os
from typing import Any

from toolkit.importing import import_at_once
from toolkit.quiet import quiet_libraries

# Set before anything of the Hub is imported: TRL reports every trainer's start otherwise.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOMES = {
    "pretrain": "toolkit.from_python",
    "sft": "toolkit.from_python",
    "reward": "toolkit.from_python",
    "dpo": "toolkit.from_python",
    "grpo": "toolkit.from_python",
    "ppo": "toolkit.from_python",
    "rejection": "toolkit.from_python",
    "rank": "toolkit.from_python",
    "evaluate": "toolkit.from_python",
    "run": "toolkit.pipeline",
    "build": "toolkit.from_python",
    "load": "toolkit.models.load",
    "merge": "toolkit.stages.merge",
    "ToolkitError": "toolkit.errors",
}
# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "ToolkitError", "__version__", "build", "dpo", "evaluate", "grpo", "load", "merge", "ppo",
    "pretrain", "rank", "rejection", "reward", "run", "sft",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "rewards":
        return import_at_once("toolkit.rewards")
    if name not in _HOMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    quiet_libraries()
    return getattr(import_at_once(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "rewards"})
