"""What a person sees: lines that fit 80 columns, and progress with a loss that was just logged."""

import json
import logging
import warnings
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from toolkit import quiet
from toolkit.stages import terminal


def test_a_note_is_wrapped_but_a_path_stays_whole(capsys):
    path = "/a/very/long/path/" + "x" * 90
    terminal.note(f"what was saved is here: {path} and here it goes on for a while, in words")
    lines = capsys.readouterr().out.splitlines()
    assert any(path in line for line in lines)
    assert all(len(line) <= 80 for line in lines if path not in line)


def test_a_command_stays_on_one_line_and_brackets_stay(capsys):
    line = 'python -c "print([1, 2])" ' + "# pip install 'toolkit[serve]' " * 4
    terminal.command("serve", line.strip())
    assert capsys.readouterr().out == f"   serve  {line.strip()}\n"


def test_only_the_first_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    terminal.note("nothing")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("steps", "logging", "every"),
    [(40, 10, 10), (400, 10, 20), (400, 30, 30), (10, 500, 1), (1000, 500, 50), (6, 1, 1)],
)
def test_interval_follows_what_is_logged(steps, logging, every):
    assert terminal.interval(TrainerState(max_steps=steps, logging_steps=logging)) == every


def test_a_line_shows_the_loss_of_its_own_step(tmp_path, capsys):
    state = TrainerState(max_steps=8, logging_steps=2)
    line, control = terminal.ProgressLine(tmp_path / "log.jsonl"), TrainerControl()
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    line.on_train_begin(args, state, control)
    for step in range(8):
        state.global_step = step
        line.on_step_begin(args, state, control)
        state.global_step = step + 1
        if state.global_step % 2 == 0:
            line.on_log(args, state, control, logs={"loss": float(state.global_step)})
    line.on_train_end(args, state, control)
    printed = capsys.readouterr().out
    for step in (2, 4, 6):
        assert f"step {step}/8  loss {step}.000" in printed
    assert "8 step(s) in 0 s  loss 8.000" in printed
    entries = [json.loads(row) for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entries[0] == {"step": 2, "loss": 2.0}


def test_a_metric_that_a_step_could_not_have_is_a_dash(tmp_path):
    line = terminal.ProgressLine(tmp_path / "log.jsonl")
    line.latest = {"reward": None, "kl": 0.25, "value/explained_variance": None}
    assert line.values() == "reward –  KL 0.250  explained –"


def test_only_expected_messages_are_silenced(caplog):
    quiet.quiet_libraries()
    quiet.quiet_libraries()
    name, start = next(iter(quiet.EXPECTED.items()))
    logger = logging.getLogger(name)
    assert sum(isinstance(known, quiet.Expected) for known in logger.filters) == 1
    logger.propagate, before = True, logger.propagate
    try:
        with caplog.at_level(logging.WARNING, logger=name):
            logger.warning(f"{start} and so on")
            logger.warning("something that matters")
    finally:
        logger.propagate = before
    assert [record.getMessage() for record in caplog.records] == ["something that matters"]


def test_a_deprecation_of_upstream_s_own_is_silenced_and_no_other():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet.quiet_libraries()
        warnings.warn(
            "`gradient_checkpointing` is deprecated, they say", FutureWarning, stacklevel=1
        )
        warnings.warn("`another` is deprecated", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["`another` is deprecated"]


def test_the_line_has_tokens_per_second_memory_and_time(tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=iter([10.0, 12.0]).__next__)
    monkeypatch.setattr(terminal, "time", clock)
    monkeypatch.setattr(terminal, "peak_memory", lambda: 3 * 2**29)
    line = terminal.ProgressLine(tmp_path / "log.jsonl")
    assert line.speed() == "1.5 GiB"
    line.count(1000.0)
    line.count(5000.0)
    assert line.speed() == "2,000 tokens/s  1.5 GiB"


def test_a_time_is_said_as_a_person_does():
    said = [terminal.duration(seconds) for seconds in (0.4, 99, 150, 5940, 7800)]
    assert said == ["0 s", "99 s", "2 min", "99 min", "2 h 10 min"]


def test_numbers_stay_one_line_by_what_can_be_spared(capsys):
    terminal.numbers("step 8/9  reward 0.500", "1,000 tokens/s", "0.8 GiB", "2 s left")
    terminal.numbers("step 8/9  " + "value 0.500  " * 4, "1,000 tokens/s", "0.8 GiB", "2 s left")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "   step 8/9  reward 0.500  1,000 tokens/s  0.8 GiB  2 s left"
    assert second.endswith("  2 s left")
    assert "GiB" not in second
    assert len(second) <= 80
