"""Power that fails at any moment of a save: what was not brought to the disk is gone."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.unit.test_pipeline import sft
from tests.unit.test_stage_resume import KEYS
from toolkit.stages import checkpoints
from toolkit.stages.resuming import newest


class Disk:
    """What of a folder outlives the power: contents and names, each as of its last `fsync`.

    Args:
        root: the folder.
        states: where what is left is put, one folder for each moment.
    """

    def __init__(self, root: Path, states: Path):
        self.root, self.states = root, states
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.held: list[int] = []  # so that no inode is given to another file
        self.fsync = os.fsync

    def synced(self, file: int) -> None:
        """In place of `os.fsync`."""
        self.fsync(file)
        path = Path(f"/proc/self/fd/{file}").resolve()
        if not path.is_relative_to(self.root):
            return
        number = path.stat().st_ino
        self.held.append(os.open(path, os.O_RDONLY))
        if stat.S_ISDIR(path.stat().st_mode):
            self.names[number] = {each.name: each.stat().st_ino for each in path.iterdir()}
        else:
            self.contents[number] = path.read_bytes()
        self.lose_power()

    def lose_power(self) -> None:
        """Write down two things that may be left now: all names, or only those that were synced."""
        for every_name in (True, False):
            place = self.states / f"{len(list(self.states.iterdir())):03d}"
            self.left(self.root, place, every_name)

    def left(self, folder: Path, place: Path, every_name: bool) -> None:
        """What is left of one folder; a name that was removed is gone in any case."""
        place.mkdir()
        kept = self.names.get(folder.stat().st_ino, {})
        for path in folder.iterdir():
            number = path.stat().st_ino
            if not every_name and kept.get(path.name) != number:
                continue
            if path.is_dir():
                self.left(path, place / path.name, every_name)
            else:
                (place / path.name).write_bytes(self.contents.get(number, b""))

    def watched(self, call):
        """A function before and after which the power may fail."""

        def watched(*args, **kwargs):
            self.lose_power()
            result = call(*args, **kwargs)
            self.lose_power()
            return result

        return watched


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are not known")
def test_a_whole_checkpoint_is_always_left(tiny_base, chats, tmp_path, monkeypatch):
    run = (tmp_path / "run").resolve()
    run.mkdir()
    (tmp_path / "states").mkdir()
    disk, in_place = Disk(run, tmp_path / "states"), checkpoints.Resumable.put_in_place
    whole = []  # the steps that were saved at each moment

    def put_in_place(self, written, place):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", disk.synced)
            patch.setattr(Path, "rename", disk.watched(Path.rename))
            patch.setattr(shutil, "rmtree", disk.watched(shutil.rmtree))
            in_place(self, written, place)
        moments = len(list(disk.states.iterdir()))
        whole.extend([self.state.global_step - 1] * (moments - len(whole)))

    monkeypatch.setattr(checkpoints.Resumable, "put_in_place", put_in_place)
    try:
        sft(tiny_base, chats, run, **KEYS | {"max_steps": 3, "save_total_limit": 1})
    finally:
        for file in disk.held:
            os.close(file)
    assert len(whole) > 100
    for saved, state in zip(whole, sorted(disk.states.iterdir()), strict=True):
        if saved:
            found = newest(state)
            assert found is not None, state
            assert int(found.name.rpartition("-")[2]) >= saved, state
