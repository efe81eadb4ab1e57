"""`--accelerate NAME`: the same command on every process that Accelerate's launcher starts.

The launcher is a child of its own, in a session of its own, so that a signal reaches it once. It ends
with 1 whatever its processes ended with; the first of them that fails says what its code was.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from toolkit.errors import UsageError

FLAG = "--accelerate"
OF_LAUNCHER = (
    "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port",
    "rdzv_backend",
)  # fmt: skip
"""What `accelerate launch` takes and may stand beside `--accelerate`; none is a key of a recipe."""
PLACES = (
    Path(__file__).parent,
    Path(__file__).resolve().parents[1],
)  # installed, and in the sources
FOLDER = "accelerate_configs"
PORT = "main_process_port"
EXIT_CODE = "TOOLKIT_EXIT_CODE"
"""The variable that names the file in which the first process to fail writes its exit code."""
PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")
PATIENCE_S = "120"  # for the step in hand and its checkpoint; torch's launcher has 30 s of its own


def is_asked_for(words: Sequence[str]) -> bool:
    """Whether a command line asks for Accelerate's launcher."""
    return any(word == FLAG or word.startswith(f"{FLAG}=") for word in words)


def launch(words: Sequence[str]) -> int:
    """Run a command on every process that the launcher starts, and wait for its end.

    Args:
        words: the command line, with `--accelerate`.

    Returns:
        The exit code of the process that failed first; 0 if none did.

    Raises:
        UsageError: if there is no such configuration, or this is one of the launcher's processes.
    """
    asked, rest = split(words)
    if "RANK" in os.environ:
        raise UsageError(f"{FLAG} starts Accelerate's launcher, which has started this process")
    config = config_file(asked.accelerate)
    written = content(config)
    # accelerate 1.15 (commands/launch.py) passes over it in a file
    asked.rdzv_backend = asked.rdzv_backend or written.get("rdzv_backend")
    is_alone = str(asked.num_machines or written.get("num_machines") or 1) == "1"
    if is_alone and not written.get(PORT):  # others may launch beside it: one that is free
        asked.main_process_port = asked.main_process_port or "0"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    for name in OF_LAUNCHER:
        if (value := getattr(asked, name)) is not None:
            command += [f"--{name}", str(value)]
    # and does not hand this on to several processes
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if written.get("use_cpu") else {}
    with tempfile.TemporaryDirectory(prefix="toolkit-") as scratch:
        told = Path(scratch) / "exit_code"
        environment = os.environ | on_cpu | {EXIT_CODE: str(told)}
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", PATIENCE_S)
        code = wait_for([*command, "-m", "toolkit", *rest], environment)
        return exit_code(told) or code


def split(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is the launcher's of a command line, and the words of every process."""
    arguments = argparse.ArgumentParser(prog="toolkit", allow_abbrev=False, add_help=False)
    for name in (FLAG.removeprefix("--"), *OF_LAUNCHER):
        arguments.add_argument(f"--{name}")
    return arguments.parse_known_args(list(words))


def config_file(name: str) -> Path:
    """The configuration of a name such as `fsdp2`, or at a path.

    Raises:
        UsageError: naming those that there are.
    """
    if (path := Path(name).expanduser()).suffix in {".yaml", ".yml", ".json"}:
        if path.is_file():
            return path
        raise UsageError(
            f"{FLAG} {name}: no such file; give a path, or one of {', '.join(names())}"
        )
    if name not in names():
        raise UsageError(
            f"{FLAG} {name}: expected the path of a launcher's .yaml, or one of "
            f"{', '.join(names())}"
        )
    return next(path for path in shipped() if path.stem == name)


def shipped() -> list[Path]:
    """The configurations that come with the package."""
    folder = next((place / FOLDER for place in PLACES if (place / FOLDER).is_dir()), None)
    return sorted(folder.glob("*.yaml")) if folder else []


def names() -> list[str]:
    """What they are called."""
    return [path.stem for path in shipped()]


def content(config: Path) -> dict[str, Any]:
    """The keys of a configuration.

    Raises:
        UsageError: if the file has none.
    """
    try:
        written: Any = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{FLAG} {config}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict):
        raise UsageError(f"{FLAG} {config}: expected a launcher's keys, found no mapping")
    return written


def wait_for(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a child to its end, handing on every signal; returns its exit code."""
    child = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    with passed_on(child):
        code = child.wait()
    return 128 - code if code < 0 else code


@contextmanager
def passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand on to a child what signals come inside the block."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            child.send_signal(number)

    before: dict[int, Any] = {}
    for name in PASSED_ON:
        # Windows has no SIGHUP, and its console gives Ctrl-C to the child too
        if (number := getattr(signal, name, None)) is None or sys.platform == "win32":
            continue
        if signal.getsignal(number) is not signal.SIG_IGN:  # such as nohup's
            before[number] = signal.signal(number, hand_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(told: Path) -> int | None:
    """What the first process that failed has written; None if none has."""
    try:
        return int(told.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def tell_launcher(code: int) -> int:
    """Write an exit code for whoever started the launcher, unless another process has; returns it."""
    if code and (place := os.environ.get(EXIT_CODE)):
        with suppress(OSError), Path(place).open("x", encoding="utf-8") as file:
            file.write(str(code))
    return code
