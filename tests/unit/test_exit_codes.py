"""One failure of each kind: its exit code, one line on standard error, and where its traceback is."""

import json
import signal

import pytest
import yaml

from tests import tiny
from toolkit import cli

TRAINER = """
import signal
from toolkit.stages.sft_trainer import TokenExactSFTTrainer

class Faulty(TokenExactSFTTrainer):
    def compute_loss(self, *args, **kwargs):
        {fault}
        return super().compute_loss(*args, **kwargs)
"""
FAULTS = {
    "nan": "return super().compute_loss(*args, **kwargs) * float('nan')",
    "bug": "assert False, 'a bug'",
    "full": "raise OSError(28, 'No space left on device')",
    "refused": "raise ValueError('what upstream refuses')",
    "sigterm": "signal.raise_signal(signal.SIGTERM)",
    "sigint": "signal.raise_signal(signal.SIGINT)",
}
# how it fails: changed keys or the words of a command, the exit code, what the line says
BEFORE = {
    "an unknown command": (["runn"], 2, "did you mean 'run'?"),
    "no recipe": (["run"], 2, "a recipe must come first"),
    "an unknown key": ({"learning_ratee": 1}, 3, "did you mean 'learning_rate'?"),
}
WITHIN = {
    "a folder that is not there": ({"model_name_or_path": "./nothing"}, 3, "no such folder"),
    "a file that is not there": ({"dataset_name": "./nothing.jsonl"}, 4, "nothing.jsonl"),
    "a row": ({"dataset_name": "bad.jsonl"}, 4, "bad.jsonl"),
    "no weights": ({"model_name_or_path": "nobody/nothing-of-this-name"}, 6, "nobody/nothing"),
    "numbers": ({"fault": "nan"}, 5, "the loss is nan"),
    "upstream": ({"fault": "refused"}, 5, "ValueError: what upstream refuses"),
    "a full disk": ({"fault": "full"}, 5, "the disk is full"),
    "a bug": ({"fault": "bug"}, 5, "AssertionError: a bug"),
}


@pytest.fixture
def command(tiny_base, chats, tmp_path, monkeypatch):
    """Makes the words of a command that fails in one way."""
    monkeypatch.chdir(tmp_path)
    tiny.save_rows(tmp_path / "bad.jsonl", [{"messages": [{"role": "robot", "content": "x"}]}])

    def words(changed, *more):
        if isinstance(changed, list):
            return changed
        keys = {
            "stage": "sft", "model_name_or_path": str(tiny_base), "dataset_name": str(chats),
            "output_dir": "run", "max_steps": 2, "lora_r": 4, "per_device_train_batch_size": 4,
        } | changed  # fmt: skip
        if fault := keys.pop("fault", None):
            (tmp_path / "faulty.py").write_text(TRAINER.format(fault=FAULTS[fault]))
            keys["trainer_class"] = "faulty.py:Faulty"
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
        return ["run", "recipe.yaml", *more]

    return words


@pytest.mark.parametrize(("changed", "code", "said"), BEFORE.values(), ids=BEFORE)
def test_before_a_run_begins(changed, code, said, command, tmp_path, capsys):
    assert cli.main(command(changed)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.parametrize(("changed", "code", "said"), WITHIN.values(), ids=WITHIN)
def test_within_a_run(changed, code, said, command, tmp_path, capsys):
    assert cli.main(command(changed)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert line.endswith("(the traceback is in run/failure.log)")
    assert "Traceback" in (tmp_path / "run" / "failure.log").read_text()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", code)
    assert status["log"] == "failure.log"
    assert status["stage"] == "sft"
    assert not (tmp_path / "run" / "stage.json").exists()


def test_debug_shows_the_traceback_too(command, capsys):
    assert cli.main(command({"dataset_name": "bad.jsonl"}, "--debug")) == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert "failure.log" in lines[-1]


@pytest.mark.parametrize(("fault", "code"), [("sigterm", 143), ("sigint", 130)])
def test_signals(fault, code, command, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(command({"fault": fault})) == code
    finally:
        signal.signal(signal.SIGINT, before)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"interrupted by {fault.upper()} after step 1 of 2")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", code)


def test_a_run_that_was_mended_leaves_no_log(command, tmp_path):
    assert cli.main(command({"fault": "bug"})) == 5
    assert cli.main(command({}, "--overwrite")) == 0
    assert not (tmp_path / "run" / "failure.log").exists()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("finished", 0)
    manifest = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert not {"status.json", "failure.log"} & manifest["outputs"].keys()


def test_a_signal_outside_of_a_run(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "env", lambda words: signal.raise_signal(signal.SIGTERM))
    assert cli.main(["env"]) == 143
    assert capsys.readouterr().err == "interrupted by SIGTERM\n"


def test_a_bug_outside_of_a_run_has_a_log_too(monkeypatch, capsys):
    def broken(words):
        raise AssertionError("a bug")

    monkeypatch.setitem(cli.COMMANDS, "env", broken)
    assert cli.main(["env"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: AssertionError: a bug (the traceback is in ")
    log = line.rpartition(" ")[2].rstrip(")")
    with open(log, encoding="utf-8") as file:
        assert "Traceback" in file.read()
