"""On a system that has not what only POSIX has, everything loads, and a stage runs."""

import subprocess
import sys

from tests import tiny
from tests.launch import ROOT, environment

# Upstream's packages have their own ways for such systems and are loaded before; of ours, no module
# may find them.
SYSTEM = """
import builtins, importlib, os, pathlib, signal, sys
import accelerate.commands.launch, datasets, matplotlib.pyplot, peft, psutil, torch, transformers, trl
import bitsandbytes, evaluate, math_verify, huggingface_hub, regex, rich.console, subprocess, tempfile

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline"}
load = builtins.__import__

def without(name, scope=None, *rest, **more):
    asking = str((scope or {}).get("__name__", ""))
    if name.partition(".")[0] in MODULES and asking.partition(".")[0] == "toolkit":
        raise ModuleNotFoundError(f"No module named {name!r}")
    return load(name, scope, *rest, **more)

builtins.__import__ = without
KEPT = {"SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN"}
for name in [n for n in dir(signal) if n.startswith(("SIG", "ITIMER")) and n.isupper()]:
    if name not in KEPT:
        delattr(signal, name)
for module, names in ((signal, "setitimer pthread_kill pthread_sigmask sigtimedwait alarm"),
                      (os, "pread pwrite geteuid getuid killpg fork setsid kill mkfifo nice")):
    for name in names.split():
        delattr(module, name)

import toolkit
for path in sorted(pathlib.Path(toolkit.__file__).parent.rglob("*.py")):
    parts = path.relative_to(pathlib.Path(toolkit.__file__).parents[1]).with_suffix("").parts
    if parts[-1] not in ("__init__", "__main__") and "inside" not in parts:
        importlib.import_module(".".join(parts))
from toolkit.cli import main
for words in COMMANDS:
    code = main(words)
    assert code == 0, (words, code)
print("ALL DONE")
"""


def test_every_module_loads_and_a_stage_runs(tiny_base, tmp_path):
    rows = str(tiny.save_rows(tmp_path / "my.jsonl", tiny.ROWS))
    base, run = str(tiny_base), str(tmp_path / "run")
    recipe = str(tmp_path / "my.yaml")
    sft = ["sft", "--model_name_or_path", base, "--dataset_name", rows, "--output_dir", run]
    commands = [
        ["--help"],
        ["sft", "--help"],
        ["env"],
        ["init", rows, "--model_name_or_path", base, "--output", recipe],
        ["check", "--keys", recipe],
        ["inspect", recipe],
        [*sft, "--max_steps", "1", "--report_to", "none", "--lora_r", "2"],
        ["verify", run],
    ]
    done = subprocess.run(
        [sys.executable, "-c", f"COMMANDS = {commands!r}\n{SYSTEM}"], cwd=ROOT, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("ALL DONE\n"), done.stdout[-1000:] + done.stderr[-3000:]
