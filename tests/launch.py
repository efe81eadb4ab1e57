"""Two real processes on the CPU, joined by gloo, as the launcher starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def two_processes(*words: object) -> str:
    """What `python -m toolkit WORDS --accelerate cpu` prints; it must succeed."""
    done = with_accelerate(*words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def with_accelerate(*words: object) -> subprocess.CompletedProcess[str]:
    """What `python -m toolkit WORDS --accelerate cpu` comes to."""
    command = [sys.executable, "-m", "toolkit", *map(str, words), "--accelerate", "cpu"]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, cwd=ROOT
    )


def environment() -> dict[str, str]:
    """Of processes that share the cores of a small machine."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def launched(
    config: str, module: str, *words: object, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """What `python -m MODULE WORDS` comes to when two processes do it.

    Args:
        config: of the launcher, with its own number of processes and precision set aside.
        module: what they run.
        *words: its arguments.
        processes: how many, if not two.
    """
    return subprocess.run(
        command(config, module, *words, processes=processes), env=on_cpu(), capture_output=True,
        text=True, check=False, cwd=ROOT,
    )  # fmt: skip


def command(config: str, module: str, *words: object, processes: int = 2) -> list[str]:
    """The launcher's command line; arguments as of `launched`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    launcher += ["--num_processes", str(processes), "--mixed_precision", "no"]
    launcher += ["--main_process_port", "0"]  # one that is free: tests launch side by side
    return [*launcher, "-m", module, *map(str, words)]


def on_cpu() -> dict[str, str]:
    """The variables that it is started with."""
    return environment() | {"ACCELERATE_USE_CPU": "true"}
