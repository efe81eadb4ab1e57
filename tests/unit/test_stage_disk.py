"""A disk that fills up keeps the checkpoint before, says what is needed, and training goes on later."""

import errno
import random
import shutil
import subprocess
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from toolkit.artifacts.checkpoint import size_of, why_not
from toolkit.errors import TrainingError, UsageError
from toolkit.stages import disk
from toolkit.stages.sft_trainer import TokenExactSFTTrainer

KEYS = {
    "lora_r": 4, "max_steps": 3, "save_steps": 1, "save_strategy": "steps", "save_total_limit": 1,
    "per_device_train_batch_size": 4, "learning_rate": 1e-2,
}  # fmt: skip
Usage = namedtuple("Usage", "total used free")


def sft(base, rows, directory, **keys):
    named = {"model_name_or_path": str(base), "dataset_name": str(rows)}
    return toolkit.sft(output_dir=str(directory), **named, **KEYS | keys)


def test_the_checkpoint_before_is_kept(tiny_base, chats, tmp_path, monkeypatch):
    run, original = tmp_path / "run", TokenExactSFTTrainer._save_optimizer_and_scheduler
    error = RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0")

    def full(self, output_dir):
        if self.state.global_step == 2:
            raise error
        original(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(TokenExactSFTTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(TrainingError) as failure:
            sft(tiny_base, chats, run)
    said = str(failure.value)
    assert f"{run}: the disk is full: a checkpoint needs " in said
    assert "are free; the last whole checkpoint is checkpoint-1: make room" in said
    assert "\n" not in said
    assert why_not(run / "checkpoint-1") is None
    again = load_file(sft(tiny_base, chats, run).output_dir / "adapter_model.safetensors")
    whole = sft(tiny_base, chats, tmp_path / "whole").output_dir / "adapter_model.safetensors"
    assert all(torch.equal(again[key], value) for key, value in load_file(whole).items())


def test_little_room_is_said_before_training(tiny_base, chats, tmp_path, monkeypatch, capsys):
    small = Usage(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: small)
    sft(tiny_base, chats, tmp_path / "run", max_steps=1)
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: little room on the disk" in printed
    assert "1 KiB are free" in printed


def test_what_a_checkpoint_needs_is_about_what_it_takes(tiny_base, chats, tmp_path):
    run = sft(tiny_base, chats, tmp_path / "run", max_steps=1).output_dir
    taken = size_of(run / "checkpoint-1")
    words = sum(file.stat().st_size for file in (run / "checkpoint-1").glob("*.json"))
    model, _ = toolkit.load(run)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name or "trainable_tokens" in name)
    expected = disk.expected_size(model)
    assert expected * 0.8 < taken - words < expected * 2 + 50_000, (expected, taken, words)


def test_other_errors_are_no_full_disk():
    assert not disk.is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk.is_full(UsageError("File too large"))
    wrapped = UsageError("rows cannot be written")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left")
    assert disk.is_full(wrapped)
    assert disk.is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))


def test_units():
    assert [disk.in_units(size) for size in (512, 3 << 20, 5 << 29)] == [
        "0 KiB",
        "3.0 MiB",
        "2.5 GiB",
    ]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    words = [mount or "", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if mount is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_small_disk(rounds, small_disk, tiny_base, chats, tmp_path):
    """Wherever in a save the room ends, what was whole is whole, and with room it goes on."""
    whole = load_file(
        sft(tiny_base, chats, tmp_path / "whole").output_dir / "adapter_model.safetensors"
    )
    chance, refusals = random.Random(2), []
    for _ in range(rounds):
        run, ballast = small_disk / "run", small_disk / "ballast"
        for _ in range(3):
            left = chance.randrange(20, 300) * 1024
            ballast.write_bytes(bytes(max(0, disk.free(small_disk) - left)))
            try:
                sft(tiny_base, chats, run)
            except TrainingError as error:
                refusals.append(str(error))
            else:
                break
            finally:
                ballast.unlink()
            assert not (run / "stage.json").exists()
            assert all(why_not(left) is None for left in run.glob("checkpoint-*"))
        done = load_file(sft(tiny_base, chats, run).output_dir / "adapter_model.safetensors")
        assert all(torch.equal(done[key], value) for key, value in whole.items())
        shutil.rmtree(run)
    assert refusals
    assert all("the disk is full" in said and "KiB are free" in said for said in refusals)
