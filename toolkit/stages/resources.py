"""How long a stage took, on what, and how much memory it had at most."""

import sys
import time
from typing import Any

import psutil
import torch

from toolkit.models.precision import accelerator


class Usage:
    """Measures what this process uses from here on."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def as_dict(self) -> dict[str, Any]:
        """Seconds, device and peak memory, for the manifest."""
        gpu = torch.cuda.is_available()
        return {
            "seconds": round(time.monotonic() - self.started, 2),
            "device": torch.cuda.get_device_name() if gpu else accelerator(),
            "peak_memory_bytes": peak_memory(),
        }


def peak_memory() -> int:
    """The most memory held so far, in bytes: of the GPU, or where there is none of this process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss()


def peak_rss() -> int:
    """The most memory that this process has held so far, in bytes."""
    try:
        import resource  # POSIX only, hence not at the top
    except ImportError:
        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))  # Windows' own count of the peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
