"""Hours and money on a device that is not here, from what it can do at most and how much of that is got."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from trl.trainer.utils import get_peak_flops

from toolkit.errors import UsageError
from toolkit.preflight.look import Look
from toolkit.preflight.memory import ROLLOUTS
from toolkit.preflight.schedule import Plan, plan
from toolkit.stages.fast_path import asks_checkpointing

SUBJECT = "price"
# The share of the peak that training gets, and of the memory's speed that sampling gets: low, likely,
# high. Assumed, not measured: no GPU was at hand (docs/benchmarks.md); hence the width.
TRAINING = (0.15, 0.30, 0.45)
SAMPLING = (0.15, 0.35, 0.60)


@dataclass(frozen=True)
class Device:
    """What a device can do at most.

    Attributes:
        name: as its maker calls it.
        flops: dense operations per second in bfloat16 with float32 sums; in float16 where it has none.
        bandwidth: bytes per second from its memory.
        memory: GiB.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float


def _of_trl(name: str) -> float:
    """The peak by TRL's table (trl/trainer/utils.py, after TorchTitan's), which its MFU uses too."""
    found = get_peak_flops(name, "bfloat16") or get_peak_flops(name, "float16")
    assert found is not None, name
    return found


# Memory and its speed: NVIDIA's data sheets. Peaks of GeForce, which TRL lacks: NVIDIA's whitepapers
# on Ampere GA102 (V2.1), Ada (V2.01) and RTX Blackwell (V1.1), appendix A, "FP16 with FP32 accumulate".
DEVICES = (
    Device("RTX 3090", 71.0e12, 936e9, 24),
    Device("RTX 4090", 165.2e12, 1008e9, 24),
    Device("RTX 5090", 209.5e12, 1792e9, 32),
    Device("T4", _of_trl("T4"), 320e9, 16),
    Device("L4", _of_trl("L4"), 300e9, 24),
    Device("A10G", _of_trl("A10G"), 600e9, 24),
    Device("A6000", _of_trl("A6000"), 768e9, 48),
    Device("L40S", _of_trl("L40S"), 864e9, 48),
    Device("A100 40GB", _of_trl("A100"), 1555e9, 40),
    Device("A100 80GB", _of_trl("A100"), 2039e9, 80),
    Device("H100 PCIe", _of_trl("H100 PCIe"), 2000e9, 80),
    Device("H100 SXM", _of_trl("H100"), 3350e9, 80),
    Device("H200", _of_trl("H200"), 4800e9, 141),
    Device("B200", _of_trl("B200"), 7700e9, 180),
)


def device_named(name: str) -> Device:
    """The device of a name; of several the smaller one.

    Raises:
        UsageError: if it is not in the table.
    """
    wanted = re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())
    for device in DEVICES:
        known = re.sub(r"[^a-z0-9]", "", device.name.lower())
        if wanted and (known == wanted or (known.startswith(wanted) and wanted[-1].isdigit())):
            return device
    names = ", ".join(device.name for device in DEVICES)
    raise UsageError(f"--gpu {name!r} is not in the table; known: {names}")


def check(look: Look) -> None:
    """Say how long a stage takes there, and what it costs."""
    if look.options.gpu is None:
        return
    found = plan(look)
    if found is None or look.config is None:
        return
    device = device_named(look.options.gpu)
    hours = sorted(
        seconds(look, found, device, *shares) / 3600 / look.options.devices
        for shares in zip(TRAINING, SAMPLING, strict=True)
    )
    low, likely, high = hours
    look.note(SUBJECT, device=device.name, hours={"low": low, "likely": likely, "high": high})
    line = f"{device.name} × {look.options.devices}: {span(low)} to {span(high)}, likely {span(likely)}"
    if look.options.price is not None:
        price = look.options.price * look.options.devices
        look.note(
            SUBJECT, cost={"low": low * price, "likely": likely * price, "high": high * price}
        )
        line += f"; {low * price:.2f} to {high * price:.2f}, likely {likely * price:.2f}"
    share = f"{TRAINING[0]:.0%} to {TRAINING[2]:.0%}"
    look.ok(SUBJECT, f"{line} (training at {share} of its peak: assumed, not measured)")


def seconds(look: Look, found: Plan, device: Device, training: float, sampling: float) -> float:
    """Seconds of a stage on one device.

    Args:
        look: the stage.
        found: its steps.
        device: where.
        training: the share of the peak.
        sampling: the share of the memory's speed.
    """
    size, _ = weights(look.config)
    # forth, back to the rows, again; on a GPU nothing else than the keys decides on the last
    passes = 2 + 2 + 2 * asks_checkpointing(look.stage)
    if not look.stage.get("use_peft", True):
        passes += 2  # the gradients of the weights
    if look.stage.stage in ("dpo", "ppo"):
        passes *= 1.5 if look.stage.stage == "dpo" else 2  # a reference; a critic
    spent = passes * size * found.tokens / (device.flops * training)
    if look.stage.stage in ROLLOUTS and found.sampled:
        tokens = int(look.stage["max_completion_length"])
        rollouts = found.sampled / max(1, found.rollout)
        each = 0.55 if look.stage.get("load_in_4bit") else 2.0
        spent += (
            rollouts * tokens * (each * size + cached(look, found)) / (device.bandwidth * sampling)
        )
    return spent


def cached(look: Look, found: Plan) -> float:
    """Bytes of keys and values that a token of a rollout reads, half of them on the average."""
    text: Any = look.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    length = max(look.lengths) + int(look.stage["max_completion_length"])
    return 2 * 2 * text.num_hidden_layers * heads * width * length * found.rollout / 2


def weights(config: Any) -> tuple[int, int]:
    """Weights that every token is multiplied with, the head included; and all of them."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    total = model.num_parameters()
    matrices = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    return sum(matrices), total


def span(hours: float) -> str:
    """A length of time as a person says it."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"
