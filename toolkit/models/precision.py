"""The precision that a base is loaded in, by what the device computes well."""

from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import is_torch_bf16_gpu_available


def device_dtype(name: str, dtype: str | None, **hub: Any) -> str | torch.dtype | None:
    """The dtype to load with: what was asked, except that "auto" is what the device computes well.

    A CPU multiplies float16 slower than float32 and rounds more; Apple's devices have bfloat16 from
    macOS 14 on.
    """
    kind = accelerator()
    slow = {"cpu": "float16", "mps": "" if kind != "mps" or computes_bf16() else "bfloat16"}
    if dtype != "auto" or not slow.get(kind):
        return dtype
    return "float32" if declared_dtype(name, **hub) == slow[kind] else "auto"


def accelerator() -> str:
    """The type of the device that is here beside the CPU, such as cuda or mps; cpu without one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def computes_bf16() -> bool:
    """Whether that device computes in bfloat16 by itself."""
    if accelerator() == "cuda":
        return torch.cuda.is_bf16_supported(False)
    return is_torch_bf16_gpu_available()


def cpu_computes_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16 with which a step was measured to be faster."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))


def declared_dtype(name: str, **hub: Any) -> str:
    """The dtype that a checkpoint's config declares, by its name; float32 where it says nothing."""
    declared = getattr(AutoConfig.from_pretrained(name, **hub), "dtype", None)
    return str(declared or "float32").removeprefix("torch.")
