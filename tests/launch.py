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
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command += ["--num_processes", "2", "--mixed_precision", "no", "-m", module, *map(str, words)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
