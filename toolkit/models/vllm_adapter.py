"""Whether vLLM can serve an adapter beside its base, by the rules of its loader.

vLLM cannot run everywhere, and tells only when it is started. The rules are those of vLLM 0.11 and
later (vllm/lora/peft_helper.py, vllm/lora/utils.py, vllm/config/lora.py).
"""

import json
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_rank(directory: Path) -> int | None:
    """The smallest `--max-lora-rank` that holds an adapter; None if there is none."""
    rank = settings(directory).get("r", 0)
    return next((size for size in RANKS if rank <= size), None)


def vllm_obstacles(directory: Path) -> list[str]:
    """Why vLLM would refuse an adapter, one short phrase each; none if it takes it.

    A merged model has none of these.
    """
    config = settings(directory)
    found = []
    if config.get("peft_type") != "LORA":
        found.append(f"it is a {config.get('peft_type')} adapter, not LoRA")
    if vllm_rank(directory) is None:
        found.append(f"its rank {config.get('r')} is above {RANKS[-1]}")
    if config.get("use_dora"):
        found.append("it is a DoRA adapter")
    if config.get("bias", "none") != "none":
        found.append("it trains biases")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.append("its rank or alpha differs between layers")
    if modules := config.get("modules_to_save"):
        found.append(f"it trains {', '.join(modules)} whole")
    if config.get("trainable_token_indices"):
        found.append("it trains rows of added tokens")
    if config.get("target_parameters"):
        found.append("it adapts parameters that are no layer of their own")
    file = directory / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return [*found, f"it has no {file.name}"]
    with safe_open(file, framework="pt") as tensors:
        other = sorted(key for key in tensors.keys() if not is_lora(key))  # noqa: SIM118
    if other and not found:
        found.append(f"its file holds {other[0]}, which is no LoRA weight")
    return found


def is_lora(key: str) -> bool:
    """Whether vLLM reads a weight of this name as one half of a LoRA layer."""
    inside = key.startswith("base_model.model.")
    return inside and key.endswith((".lora_A.weight", ".lora_B.weight"))


def settings(directory: Path) -> dict[str, Any]:
    """The adapter_config.json of a folder."""
    return json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
