"""Checkpoints that are whole or not there: how a trainer writes them.

A checkpoint is written in `.saving`, brought to the disk, sealed with a manifest and renamed; an
older one goes when the newer was read back. The Trainer's private names were read in transformers
5.23, trainer.py: `_save_checkpoint` writes all of a checkpoint below `_get_output_dir`, and removes
old ones there; `_load_optimizer_and_scheduler` is called whenever training resumes.
"""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.artifacts import checkpoint as on_disk
from toolkit.artifacts.checkpoint import STATE
from toolkit.artifacts.manifest import STARTED, read_json
from toolkit.errors import TrainingError
from toolkit.stages import position
from toolkit.stages.disk import DiskFull, check_room, full_disk, is_full
from toolkit.stages.processes import meet, processes, writes_here
from toolkit.stages.terminal import note

SAVING = ".saving"
NO_RENAME = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

T = TypeVar("T")


class Resumable:
    """For a Trainer: its checkpoints are whole or not there, and hold where it was.

    Attributes:
        fresh_optimizer: whether it resumes with a new optimizer.
        new_settings: whether it resumes with the settings of the recipe instead of those in the
            optimizer that was saved.
    """

    args: Any
    state: Any
    fresh_optimizer = False
    new_settings = False
    _saving = False

    def _get_output_dir(self, trial: Any) -> str:
        place = super()._get_output_dir(trial)  # type: ignore[misc]
        return str(Path(place) / SAVING) if self._saving else place

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        directory = Path(self._get_output_dir(trial))
        written = directory / SAVING / name
        try:
            if self.args.should_save:
                check_room(directory)
            self._saving = True
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            position.save(self, written)
            self.name_best(written, directory / name)
            meet()
            if writes_here():
                self.put_in_place(written, directory / name)
            meet()
        except Exception as error:
            if isinstance(error, DiskFull) or not is_full(error):
                raise
            raise full_disk(
                directory, on_disk.size_of(written) if written.is_dir() else 0
            ) from error
        finally:
            self._saving = False
            if writes_here():
                shutil.rmtree(directory / SAVING, ignore_errors=True)

    def name_best(self, written: Path, place: Path) -> None:
        """Where this checkpoint is the best so far, note where it will be, not where it was written."""
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(place)
            if self.args.should_save:
                self.state.save_to_json(str(written / STATE))

    def put_in_place(self, written: Path, place: Path) -> None:
        """Seal a checkpoint and give it its name; then older ones may go."""
        on_disk.seal(written, processes=processes(), inputs=read_json(place.parent / STARTED))
        if place.exists():  # one that was passed over, or that training has gone back behind
            put_away(place)
        move(written, place)
        on_disk.to_disk(place.parent)
        best = self.state.best_model_checkpoint
        remove_older(place, self.args.save_total_limit, Path(best) if best else None)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        load: Callable[..., None] = super()._load_optimizer_and_scheduler  # type: ignore[misc]
        if checkpoint is None:
            return load(checkpoint)
        if self.fresh_optimizer:
            position.set_rates(self)
        elif self.new_settings:
            settings = position.settings(self)
            load(checkpoint)
            position.set_rates(self, settings)
        else:
            load(checkpoint)
        return position.load(self, Path(checkpoint))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return position.exact(super()._get_train_sampler(*args, **kwargs), self)  # type: ignore[misc]


def resumable(kind: type[T]) -> type[T]:
    """A trainer's class whose checkpoints are whole or not there."""
    if issubclass(kind, Resumable):
        return kind
    same = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    made: Any = type(kind.__name__, (Resumable, kind), same | {"__doc__": kind.__doc__})
    return made


class AtTheEndOfAnEpoch(TrainerCallback):
    """Saves after the last step of an epoch when the epoch has ended.

    What is measured and logged at its end comes before the checkpoint then. In transformers 5.23
    it would come after, and never where training resumes from that checkpoint.
    """

    def __init__(self) -> None:
        self.put_off = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put a save off to the end of the epoch, which comes next."""
        if control.should_save and float(state.epoch or 0.5).is_integer():
            self.put_off, control.should_save = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what was put off."""
        if self.put_off:
            self.put_off, control.should_save = False, True


def move(written: Path, place: Path) -> None:
    """Rename a folder; where that cannot be, copy it, with its manifest last."""
    try:
        written.rename(place)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        note(f"{place.parent}: no folder can be renamed here, so checkpoints are copied")
        shutil.copytree(written, place, ignore=shutil.ignore_patterns(on_disk.SEAL))
        for path in on_disk.files_below(place).values():
            on_disk.to_disk(path)
        shutil.copy2(written / on_disk.SEAL, place)
        on_disk.to_disk(place / on_disk.SEAL)


def remove_older(newest: Path, limit: int | None, best: Path | None) -> None:
    """Remove the oldest checkpoints beyond `save_total_limit`, once the newest has been read back.

    What lies after the newest, or has no manifest, is left alone; so is the best.

    Raises:
        TrainingError: if the newest is not what was written.
    """
    if not limit or limit < 0:
        return
    own = int(newest.name.rpartition("-")[2])
    kept = [newest, *([best] if best and best.resolve() != newest.resolve() else [])]
    found = [folder for step, folder in on_disk.sealed(newest.parent) if step < own]
    older = [folder for folder in found if folder.resolve() not in {p.resolve() for p in kept}]
    surplus = older[max(0, limit - len(kept)) :]
    if not surplus:
        return
    if (phrase := next(on_disk.damage(newest), (None, None))[1]) is not None:
        raise TrainingError(
            f"{newest} does not read back as it was written ({phrase}); older checkpoints stay: "
            "look at the disk, and run the same command again"
        )
    for folder in reversed(surplus):
        put_away(folder)


def put_away(folder: Path) -> None:
    """Remove a checkpoint, of which a crash leaves nothing that looks like one."""
    gone = folder.parent / SAVING / f"old-{folder.name}"
    try:
        folder.rename(gone)
    except OSError:
        (folder / on_disk.SEAL).unlink(missing_ok=True)
        gone = folder
    shutil.rmtree(gone)
