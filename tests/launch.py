"""Two real processes on the CPU, joined by gloo, as the launcher starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def two_processes(*words: object) -> str:
    """What `python -m toolkit WORDS` prints when two processes do it; it must succeed."""
    done = launched("accelerate_configs/cpu.yaml", "toolkit", *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def launched(config: str, module: str, *words: object) -> subprocess.CompletedProcess[str]:
    """What `python -m MODULE WORDS` comes to when two processes do it.

    Args:
        config: of the launcher, with its own number of processes and precision set aside.
        module: what they run.
        *words: its arguments.
    """
    return subprocess.run(
        command(config, module, *words), env=environment(), capture_output=True, text=True,
        check=False, cwd=ROOT,
    )  # fmt: skip


def command(config: str, module: str, *words: object) -> list[str]:
    """The launcher's command line; arguments as of `launched`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    return [
        *launcher, "--num_processes", "2", "--mixed_precision", "no", "-m", module,
        *map(str, words),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """The variables that it is started with."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
