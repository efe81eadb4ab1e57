"""What is here: versions, devices, and whether CUDA and bitsandbytes really work."""

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from toolkit.artifacts.manifest import environment

Line = tuple[str, str]


def describe() -> list[Line]:
    """Name and value of everything that a bug report needs; no token is among it."""
    import toolkit

    found = environment()
    lines = [("toolkit", toolkit.__version__), ("python", found["python"])]
    lines += [("platform", found["platform"]), *found["libraries"].items()]
    lines += [(name, attempt(probe)) for name, probe in PROBES]
    lines.append(("Hub", "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online"))
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    place = cache if cache.exists() else Path.cwd()
    lines.append(("free disk", f"{shutil.disk_usage(place).free / 2**30:.0f} GiB at {place}"))
    return lines


def attempt(probe: Callable[[], str]) -> str:
    """What a probe says; a failure is what it says then, in one line."""
    try:
        return probe()
    except Exception as error:  # a broken driver raises anything; the line must still be printed
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def devices() -> str:
    """The accelerators, after a matrix product on the first; else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        built = "built without CUDA" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
        return f"CPU, {torch.get_num_threads()} threads ({built})"
    (torch.ones(8, 8, device=accelerator) @ torch.ones(8, 8, device=accelerator)).sum().item()
    count = torch.accelerator.device_count()
    if accelerator.type != "cuda":
        return f"{count} x {accelerator.type}"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{count} x {torch.cuda.get_device_name()}, {memory:.0f} GiB, CUDA {torch.version.cuda}"


def four_bit() -> str:
    """Whether bitsandbytes quantizes and multiplies on the device that would train."""
    torch = importlib.import_module("torch")
    bitsandbytes = importlib.import_module("bitsandbytes")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
    result = layer.to(device)(torch.ones(2, 64, device=device))
    return f"works on {device.type}" if bool(result.isfinite().all()) else "gives NaN"


PROBES = (("device", devices), ("4-bit", four_bit))
