"""`--accelerate NAME` starts the same command on several processes, and ends as they end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import tiny
from tests.launch import ROOT, environment, with_accelerate
from toolkit import cli, launching
from toolkit.errors import UsageError

RECIPE = str(ROOT / "recipes" / "sft_lora.yaml")


@pytest.fixture
def started(monkeypatch):
    """The command of the launcher and its environment, in place of starting it."""
    found = []

    def wait_for(command, environment):
        found.append((list(command), dict(environment)))
        return 1

    monkeypatch.setattr(launching, "wait_for", wait_for)
    return found


def test_the_launcher_is_given_its_own_words_and_the_processes_theirs(started):
    words = [
        "run",
        RECIPE,
        "--accelerate",
        "fsdp2",
        "--num_processes",
        "4",
        "--seed",
        "1",
        "--debug",
    ]
    assert cli.main(words) == 1
    ((command, _),) = started
    config = str(ROOT / "accelerate_configs" / "fsdp2.yaml")
    assert command == [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", config,
        "--num_processes", "4", "--main_process_port", "0",
        "-m", "toolkit", "run", RECIPE, "--seed", "1", "--debug",
    ]  # fmt: skip


def test_a_stage_without_a_file_goes_too(started, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("distributed_type: MULTI_GPU\nuse_cpu: true\nrdzv_backend: c10d\n")
    keys = ["--model_name_or_path", "x", "--dataset_name", "x.jsonl"]
    cli.main(["sft", *keys, f"--accelerate={own}"])
    ((command, given),) = started
    given_on = ["--rdzv_backend", "c10d", "-m", "toolkit", "sft", *keys]
    free = ["--main_process_port", "0"]
    assert command[3:] == ["--config_file", str(own), *free, *given_on]
    assert given["ACCELERATE_USE_CPU"] == "true"


def test_several_machines_meet_where_they_are_told(started):
    cli.main(["run", RECIPE, "--accelerate", "multi_node", "--machine_rank", "1"])
    cli.main(["run", RECIPE, "--accelerate", "ddp", "--num_machines", "2"])
    assert not any("--main_process_port" in command for command, _ in started)


def test_the_code_of_the_first_process_that_fails_is_the_command_s(started, monkeypatch):
    def wait_for(command, environment):
        monkeypatch.setenv(launching.EXIT_CODE, environment[launching.EXIT_CODE])
        assert launching.tell_launcher(4) == 4
        launching.tell_launcher(5)  # another, that has lost the first
        return 1

    monkeypatch.setattr(launching, "wait_for", wait_for)
    assert cli.main(["run", RECIPE, "--accelerate", "ddp"]) == 4


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", RECIPE, "--accelerate", "fsdp3"], 2, "one of cpu, ddp, fsdp2"),
        (["run", RECIPE, "--accelerate", "./none.yaml"], 2, "no such file"),
        (["merge", "x", "--accelerate", "ddp"], 2, "goes with run and the stages"),
        (["run", RECIPE, "--accelerate", "ddp", "--sed", "1"], 3, "did you mean 'seed'?"),
    ],
)
def test_what_cannot_start_is_one_line(words, code, said, started, capsys):
    assert cli.main(words) == code
    assert said in capsys.readouterr().err
    assert not started


def test_a_launcher_within_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="has started this process"):
        launching.launch(["run", RECIPE, "--accelerate", "ddp"])


CHILD = """
import signal, sys, time
seen = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: seen.append(number))
print("ready", flush=True)
while not seen:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(10 + len(seen))
"""
PARENT = f"""
import signal, sys
from toolkit import launching
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.exit(launching.wait_for([sys.executable, "-c", {CHILD!r}], dict(__import__("os").environ)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_reaches_the_launcher_once(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True, cwd=ROOT,
        env=environment(),
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    os.killpg(parent.pid, number)  # as a terminal's Ctrl-C
    assert parent.wait() == 11


def test_a_child_that_a_signal_has_killed_ends_as_a_shell_says_it():
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert launching.wait_for([sys.executable, "-c", dies], dict(os.environ)) == 143


@pytest.mark.slow
def test_the_exit_code_of_a_stage_that_fails_on_two_processes(tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "bad.jsonl", [{"messages": [{"role": "x", "content": "y"}]}])
    keys = [
        "--model_name_or_path",
        tiny_base,
        "--dataset_name",
        rows,
        "--output_dir",
        tmp_path / "run",
    ]
    done = with_accelerate("sft", *keys)
    assert done.returncode == 4
    assert "bad.jsonl" in done.stderr


@pytest.mark.slow
def test_sigterm_stops_two_processes_after_the_step_and_is_143(tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    keys = {
        "model_name_or_path": tiny_base, "dataset_name": rows, "output_dir": tmp_path / "run",
        "max_steps": 100_000, "lora_r": 4, "logging_steps": 1, "report_to": "none",
    }  # fmt: skip
    words = [str(word) for key, value in keys.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "toolkit", "sft", *words, "--accelerate", "cpu"]
    run = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    while run.poll() is None and not (log.is_file() and log.read_text()):
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate()
    assert run.returncode == 143, said[-3000:]
    assert said.count("interrupted by SIGTERM after step") == 1
    assert list((tmp_path / "run").glob("checkpoint-*"))
