"""Checkpoints: whole or not there, the newest whole one is taken, and what is wrong is named."""

import inspect
import json
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer
from trl import GRPOTrainer

from tests import tiny
from tests.faults.forks import Fork
from tests.unit.test_pipeline import sft
from tests.unit.test_stage_resume import KEYS, interrupt, logged
from toolkit import cli
from toolkit.artifacts import checkpoint as on_disk
from toolkit.errors import RecipeError, TrainingError, UsageError
from toolkit.stages import checkpoints, disk, position, run_folder
from toolkit.stages.checkpoints import SAVING, AtTheEndOfAnEpoch, move, remove_older
from toolkit.stages.resuming import in_parts, newest

FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
    "checkpoint.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json",
    "tokenizer_config.json", "trainer_state.json", "training_args.bin",
}  # fmt: skip
DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "changed": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"~"),
    "removed": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    """A run of four steps, with all its checkpoints."""
    place = tmp_path_factory.mktemp("trained")
    rows = tiny.save_rows(place / "chats.jsonl", tiny.ROWS)
    sft(tiny_base, rows, place / "run", **KEYS)
    return place


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that was interrupted after its third step."""
    shutil.copytree(trained / "run", tmp_path / "run")
    interrupt(tmp_path / "run", "checkpoint-4")
    return tmp_path / "run"


def again(trained, run, tiny_base, **keys):
    return sft(tiny_base, trained / "chats.jsonl", run, **KEYS | keys)


def weights(run):
    return (run / "adapter_model.safetensors").read_bytes()


# What is written.


def test_a_checkpoint_lists_what_it_holds(trained):
    checkpoint = trained / "run" / "checkpoint-4"
    assert {path.name for path in checkpoint.iterdir()} == FILES
    listed = json.loads((checkpoint / "checkpoint.json").read_text())
    assert listed["files"].keys() == FILES - {"checkpoint.json"}
    assert listed["inputs"]["recipe"]["learning_rate"] == 1e-2
    assert list(on_disk.damage(checkpoint)) == []
    assert not (trained / "run" / SAVING).exists()


def test_nothing_has_its_name_before_it_is_whole(tiny_base, chats, tmp_path, monkeypatch):
    """The manifest is the last file, and comes after all others are on the disk."""
    synced, seen = [], []
    to_disk, write = on_disk.to_disk, on_disk.write_json
    monkeypatch.setattr(on_disk, "to_disk", lambda path: (synced.append(path.name), to_disk(path)))

    def last(path, value):
        seen.append(
            (set(value["files"]) <= set(synced), (tmp_path / "run" / path.parent.name).exists())
        )
        write(path, value)

    monkeypatch.setattr(on_disk, "write_json", last)
    sft(tiny_base, chats, tmp_path / "run", **KEYS | {"max_steps": 1})
    assert seen == [(True, False)]
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("at", ["put_in_place", "move"])
def test_a_save_that_fails_leaves_the_older_one(at, tiny_base, chats, tmp_path, monkeypatch):
    run = tmp_path / "run"
    broken = OSError(5, "Input/output error")

    def fail(*args):
        if (run / "checkpoint-2").exists():
            raise broken
        return whole(*args)

    owner = checkpoints if at == "move" else checkpoints.Resumable
    whole = getattr(owner, at)
    monkeypatch.setattr(owner, at, fail)
    with pytest.raises(OSError, match="Input/output"):
        sft(tiny_base, chats, run, **KEYS | {"save_total_limit": 1})
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    assert newest(run) == run / "checkpoint-2"
    assert not (run / SAVING).exists()


def test_an_older_one_goes_only_when_the_newer_reads_back(run, capsys):
    (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        TrainingError, match=r"checkpoint-3 does not read back .*optimizer.pt has 0"
    ):
        remove_older(run / "checkpoint-3", 1, None)
    assert len(on_disk.sealed(run)) == 3


def test_what_is_kept(run):
    """The limit's newest and the best; what has no manifest, or came after, is left alone."""
    shutil.copytree(run / "checkpoint-3", run / "checkpoint-9")
    (run / "checkpoint-0").mkdir()
    (run / SAVING).mkdir()
    remove_older(run / "checkpoint-3", 2, run / "checkpoint-1")
    assert sorted(path.name[-1] for path in run.glob("checkpoint-*")) == ["0", "1", "3", "9"]
    remove_older(run / "checkpoint-3", 1, None)
    assert sorted(path.name[-1] for path in run.glob("checkpoint-*")) == ["0", "3", "9"]


def test_the_best_is_noted_where_it_will_be(tiny_base, chats, tmp_path):
    keys = KEYS | {"eval_strategy": "steps", "eval_steps": 1, "test_split_size": 4,
                   "load_best_model_at_end": True, "save_total_limit": 1}  # fmt: skip
    sft(tiny_base, chats, tmp_path / "run", **keys)
    last = newest(tmp_path / "run")
    assert last is not None
    best = Path(json.loads((last / "trainer_state.json").read_text())["best_model_checkpoint"])
    assert best.parent == tmp_path / "run"
    assert weights(best) == weights(tmp_path / "run")


def test_a_full_disk_says_need_have_and_last(tiny_base, chats, tmp_path, monkeypatch):
    run, save = tmp_path / "run", torch.save

    def full(value, path, *args, **kwargs):
        if "checkpoint-3" in str(path):
            raise OSError(28, "No space left on device")
        save(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    wanted = r"disk is full: a checkpoint needs \d+ KiB, and [\d.]+ .iB are free; the last whole checkpoint is checkpoint-2: make room"
    with pytest.raises(TrainingError, match=wanted):
        sft(tiny_base, chats, run, **KEYS | {"save_total_limit": 1})
    assert newest(run) == run / "checkpoint-2"


def test_what_does_not_fit_is_not_begun(run, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(TrainingError, match=r"needs \d+ KiB, and 1 KiB are free"):
        disk.check_room(run)
    disk.check_room(run / "empty")


def test_a_file_that_the_system_cuts_off(trained, run, tiny_base, tmp_path):
    """A real limit of the operating system, in a process of its own."""

    def cut_off():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        again(trained, run, tiny_base)

    fork = Fork(cut_off, tmp_path / "log")
    assert fork.wait() == 5
    assert "the disk is full: a checkpoint needs" in (tmp_path / "log").read_text()
    assert newest(run) == run / "checkpoint-3"
    again(trained, run, tiny_base)
    assert weights(run) == weights(trained / "run")


def test_what_a_killed_save_has_left_is_removed(trained, run, tiny_base, capsys):
    shutil.copytree(run / "checkpoint-3", run / SAVING / "checkpoint-4")
    again(trained, run, tiny_base)
    assert "half written is removed" in capsys.readouterr().out
    assert not (run / SAVING).exists()
    assert weights(run) == weights(trained / "run")


def test_the_one_that_is_resumed_from_may_go_in_between(trained, run, tiny_base):
    again(trained, run, tiny_base, max_steps=5, save_total_limit=1,
          allow_change=["max_steps", "save_total_limit"])  # fmt: skip
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-5"]
    assert [step for step, _ in logged(run)] == [1, 2, 3, 4, 5]


def test_where_no_folder_can_be_renamed_it_is_copied(run, tmp_path, monkeypatch, capsys):
    def cannot(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", cannot)
    move(run / "checkpoint-3", run / "checkpoint-7")
    assert on_disk.why_not(run / "checkpoint-7") is None
    assert "no folder can be renamed here" in " ".join(capsys.readouterr().out.split())


def test_drives_that_rename_in_parts_are_known(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\ns3fs {tmp_path.resolve()} fuse.s3fs rw 0 0\n")
    assert in_parts(tmp_path, mounts) == "fuse.s3fs"
    assert in_parts(Path("/"), mounts) is None
    assert in_parts(tmp_path, tmp_path / "none") is None


# What is taken.


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_file_is_named_and_the_one_before_is_taken(name, kind, run, capsys):
    DAMAGE[kind](run / "checkpoint-3" / name)
    if kind == "cut" and name == "checkpoint.json":  # of its last byte, nothing depends
        (run / "checkpoint-3" / name).write_bytes(b'{"files": {')
    assert newest(run) == run / "checkpoint-2"
    assert f"checkpoint-3 is passed over: {name}" in " ".join(capsys.readouterr().out.split())
    assert (run / "checkpoint-3").is_dir()


def test_with_none_that_is_whole_nothing_begins_in_silence(trained, run, tiny_base):
    for number in (1, 2, 3):
        (run / f"checkpoint-{number}" / "chat_template.jinja").write_text("another")
    with pytest.raises(TrainingError, match=r"checkpoint-3: chat_template.jinja has .*--overwrite"):
        again(trained, run, tiny_base)


def test_one_that_is_named_is_refused_by_the_file(trained, run, tiny_base):
    (run / "checkpoint-2" / "rng_state.pth").unlink()
    with pytest.raises(
        TrainingError, match=r"checkpoint-2 cannot .* rng_state.pth is missing; name"
    ):
        again(trained, run, tiny_base, resume_from_checkpoint=str(run / "checkpoint-2"))


def test_a_run_whose_record_is_lost_is_not_mixed_with_another(trained, run, tiny_base, chats):
    (run / "started.json").unlink()
    with pytest.raises(RecipeError, match=r"not this one any more \(learning_rate: 0.01 → 0.5"):
        again(trained, run, tiny_base, learning_rate=0.5)
    again(trained, run, tiny_base, learning_rate=0.5, overwrite=True)
    assert rates(run) == [0.5] * 4, "from the first step"


def test_what_was_allowed_once_counts_when_it_comes_to_a_checkpoint(trained, run, tiny_base):
    """A crash before it leaves the old learning rate in the optimizer that would be loaded."""
    started = json.loads((run / "started.json").read_text())
    started["recipe"]["learning_rate"] = 0.02
    (run / "started.json").write_text(json.dumps(started))
    with pytest.raises(RecipeError, match=r"not this one any more \(learning_rate: 0.01 → 0.02"):
        again(trained, run, tiny_base, learning_rate=0.02)
    again(trained, run, tiny_base, learning_rate=0.02, allow_change=["learning_rate"])
    assert rates(run) == [0.01, 0.01, 0.01, 0.02]


def test_an_older_one_may_be_of_another_run(trained, run, tiny_base):
    sealed = json.loads((run / "checkpoint-2" / on_disk.SEAL).read_text())
    sealed["inputs"]["recipe"]["seed"] = 7
    (run / "checkpoint-2" / on_disk.SEAL).write_text(json.dumps(sealed))
    (run / "checkpoint-3" / "optimizer.pt").unlink()
    with pytest.raises(RecipeError, match=r"checkpoint-2 is of another run \(seed: 7 → 42\)"):
        again(trained, run, tiny_base)


def test_a_crash_while_an_old_run_is_removed_leaves_its_record(run, tmp_path, monkeypatch):
    removed = iter([None, OSError("gone")])
    monkeypatch.setattr(run_folder.shutil, "rmtree", lambda path: raise_or_none(next(removed)))
    with pytest.raises(OSError, match="gone"):
        run_folder.remove(run)
    assert (run / "started.json").is_file()


def raise_or_none(error):
    if error:
        raise error


def test_one_that_is_named_is_of_this_run(trained, run, tiny_base, tmp_path):
    named = {"resume_from_checkpoint": str(run / "checkpoint-2"), "learning_rate": 0.5}
    with pytest.raises(RecipeError, match=r"another run \(learning_rate: 0.01 → 0.5\)"):
        again(trained, tmp_path / "new", tiny_base, **named)
    shutil.rmtree(tmp_path / "new")
    again(trained, tmp_path / "new", tiny_base, allow_change=["learning_rate"], **named)
    assert logged(tmp_path / "new")[0][0] == 3


def test_the_best_so_far_is_looked_at_too(run, capsys):
    state = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = str(run / "checkpoint-1")
    (run / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(state))
    on_disk.seal(run / "checkpoint-3")
    assert newest(run) == run / "checkpoint-3"
    (run / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"")
    assert newest(run) == run / "checkpoint-2"
    assert "of the best so far, checkpoint-1, adapter_model" in " ".join(
        capsys.readouterr().out.split()
    )


# A new optimizer.


def rates(run):
    lines = (run / "log.jsonl").read_text().splitlines()
    return [entry["learning_rate"] for entry in map(json.loads, lines) if "learning_rate" in entry]


def test_without_an_optimizer_only_where_it_is_meant(tiny_base, chats, tmp_path, capsys):
    """The schedule goes on where it was all the same."""
    keys = KEYS | {"lr_scheduler_type": "linear", "save_only_model": True}
    whole = sft(tiny_base, chats, tmp_path / "run", **keys).output_dir
    before, wanted = weights(whole), rates(whole)
    interrupt(whole, "checkpoint-4", "checkpoint-3")
    with pytest.raises(
        TrainingError, match=r"optimizer.pt was not saved .* give --fresh-optimizer"
    ):
        sft(tiny_base, chats, whole, **keys)
    sft(tiny_base, chats, whole, **keys, fresh_optimizer=True)
    assert rates(whole) == pytest.approx(wanted)
    assert weights(whole) != before


def test_a_damaged_optimizer_is_not_read(trained, run, tiny_base):
    (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"half")
    assert newest(run, fresh_optimizer=True) == run / "checkpoint-3"
    again(trained, run, tiny_base, fresh_optimizer=True)
    assert logged(run)[:3] == logged(trained / "run")[:3]
    assert weights(run) != weights(trained / "run")


# What changed.


def test_what_changed_is_refused_and_what_is_meant_goes_on(trained, run, tiny_base, capsys):
    with pytest.raises(
        RecipeError, match=r"learning_rate: 0.01 → 0.02; seed: 42 → 7.*--allow-change"
    ):
        again(trained, run, tiny_base, learning_rate=0.02, seed=7)
    with pytest.raises(RecipeError, match=r"seed: 42 → 7\)"):
        again(trained, run, tiny_base, learning_rate=0.02, seed=7, allow_change=["learning_rate"])
    again(trained, run, tiny_base, learning_rate=0.02, allow_change=["learning_rate"])
    assert "allowed: learning_rate: 0.01 → 0.02" in " ".join(capsys.readouterr().out.split())
    assert rates(run) == [0.01, 0.01, 0.01, 0.02], "not what the saved optimizer says"


def test_another_base_and_another_rank_are_refused(trained, run, tmp_path):
    other = tiny.save_base(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"lora_r: 4 → 8; model_name_or_path: .* → .*other"):
        again(trained, run, other, lora_r=8)


def test_both_flags_of_the_command(trained, run, tiny_base):
    (run / "checkpoint-3" / "optimizer.pt").unlink()
    keys = KEYS | {
        "model_name_or_path": tiny_base, "dataset_name": trained / "chats.jsonl", "output_dir": run,
        "lora_r": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 0.02,
    }  # fmt: skip
    words = ["sft", *(f"--{key}={value}" for key, value in keys.items())]
    assert cli.main([*words, "--fresh-optimizer"]) == 3
    words += ["--allow-change", "learning_rate"]
    assert cli.main([*words, "--fresh-optimizer"]) == 0
    assert rates(run) == [0.01, 0.01, 0.01, 0.02]


def test_a_log_that_a_crash_has_cut_off(trained, run, tiny_base):
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')
    again(trained, run, tiny_base)
    assert logged(run) == logged(trained / "run")


def test_more_steps_of_a_schedule(trained, run, tiny_base):
    again(trained, run, tiny_base, max_steps=6, allow_change=["max_steps"])
    assert [step for step, _ in logged(run)] == [1, 2, 3, 4, 5, 6]


def test_rows_that_changed(trained, run, tiny_base, tmp_path):
    shutil.copy(trained / "chats.jsonl", tmp_path)
    kept = trained / "chats.jsonl"
    text = kept.read_text()
    try:
        kept.write_text(text.replace("Answer 1", "Reply 1"))
        with pytest.raises(RecipeError, match=r"chats.jsonl: its content changed"):
            again(trained, run, tiny_base)
        again(trained, run, tiny_base, allow_change=["data"])
    finally:
        kept.write_text(text)


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("lora_r", RecipeError, "does not go with another lora_r"),
        ("learning_rat", UsageError, "did you mean 'learning_rate'"),
    ],
)
def test_what_cannot_be_allowed(word, error, said, trained, run, tiny_base):
    with pytest.raises(error, match=said):
        again(trained, run, tiny_base, allow_change=[word])


def test_a_finished_run_is_left_as_it_is(trained, tiny_base, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again(trained, tmp_path / "run", tiny_base)
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


# The end of an epoch.


def test_what_is_measured_at_the_end_of_an_epoch_comes_before_its_checkpoint(
    tiny_base, chats, tmp_path
):
    keys = KEYS | {"max_steps": -1, "num_train_epochs": 2, "save_steps": 3, "test_split_size": 12,
                   "eval_strategy": "epoch", "per_device_train_batch_size": 4}  # fmt: skip
    run = sft(tiny_base, chats, tmp_path / "run", **keys).output_dir
    wanted, held_out = weights(run), evaluated(run)
    assert len(held_out) == 2
    interrupt(run, "checkpoint-6")
    state = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())
    assert "eval_loss" in state["log_history"][-1]
    sft(tiny_base, chats, run, **keys)
    assert weights(run) == wanted
    assert evaluated(run) == held_out


def evaluated(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    found = {entry["step"]: entry["eval_loss"] for entry in lines if "eval_loss" in entry}
    return found


def test_a_save_that_is_put_off_is_not_lost():
    callback, control = AtTheEndOfAnEpoch(), SimpleNamespace(should_save=True)
    for epoch, saves in ((0.5, True), (1.0, False)):
        callback.on_step_end(None, SimpleNamespace(epoch=epoch), control)
        assert control.should_save is saves
    callback.on_epoch_end(None, None, control)
    assert control.should_save


# What is relied on upstream.


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("_save_checkpoint", "self, model, trial"),
        ("_get_output_dir", "self, trial"),
        ("_load_optimizer_and_scheduler", "self, checkpoint"),
        ("_get_train_sampler", "self, train_dataset"),
    ],
)
def test_the_methods_that_are_extended_take_what_they_took(name, signature):
    method = getattr(Trainer, name, None)
    assert method is not None, f"Trainer has no {name} any more"
    assert ", ".join(inspect.signature(method).parameters) == signature


def test_a_checkpoint_is_written_where_the_run_is_said_to_be():
    source = inspect.getsource(Trainer._save_checkpoint)
    assert source.index("self._get_output_dir(") < source.index("self.save_model(output_dir")
    assert "output_dir=run_dir" in source, "older checkpoints are removed somewhere else"
    assert "self._load_optimizer_and_scheduler(" in inspect.getsource(Trainer._prepare_for_training)


def test_a_rollout_is_where_it_was():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    for words in ("self._step % generate_every == 0", "self._buffered_inputs is None",
                  "self._buffered_inputs[self._step % self.args.steps_per_generation]",
                  "generate_every = self.args.steps_per_generation * self.num_iterations"):  # fmt: skip
        assert words in source, f"TRL no longer has {words}"


def test_a_rollout_of_other_processes_is_refused(tmp_path):
    (tmp_path / position.ROLLOUT.format(0)).touch()
    on_disk.seal(tmp_path, processes=2)
    with pytest.raises(TrainingError, match=r"by 2 process\(es\): resume with as many, found 1"):
        position.load(SimpleNamespace(args=None), tmp_path)


def test_weights_are_of_the_checkpoint(trained):
    one, other = (load_file(trained / "run" / name / "adapter_model.safetensors")
                  for name in ("checkpoint-3", "checkpoint-4"))  # fmt: skip
    assert any(not torch.equal(one[key], other[key]) for key in one)
