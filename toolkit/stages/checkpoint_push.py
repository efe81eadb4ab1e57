"""Pushing while a stage trains: its checkpoints, so that another machine can go on from them."""

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.artifacts import hub
from toolkit.artifacts.hub_checkpoint import LAST, pull_checkpoint, push_checkpoint, snapshot
from toolkit.errors import HubError, RecipeError
from toolkit.recipe import StageRecipe
from toolkit.recipe.sharing import FROM_HUB, RESUMABLE
from toolkit.stages.processes import is_first_process, meet, writes_here
from toolkit.stages.terminal import note

IN_TRAINING = "\n\n**Still in training.** Weights of {checkpoint}; nothing of them is proved.\n"


def restore(recipe: StageRecipe, folder: Path) -> None:
    """Where `resume_from_checkpoint: hub`, bring the newest checkpoint of the stage's repository.

    Raises:
        RecipeError: if the repository is not known, or its checkpoint is of another run.
        HubError: if the Hub cannot be asked, or does not give it.
    """
    if recipe["resume_from_checkpoint"] != FROM_HUB:
        return
    repo = recipe["hub_model_id"]
    if repo is None:
        raise RecipeError("resume_from_checkpoint: hub needs hub_model_id, found none")
    meet()  # the inputs of this run are written by the first process
    if writes_here():
        found = pull_checkpoint(
            repo, folder, revision=recipe["hub_revision"], tell=note,
            allow_change=recipe.allow_change,
        )  # fmt: skip
        if found is not None:
            note(f"{found.name} was pulled from {repo}")
    meet()


def pusher_of(trainer: Trainer, recipe: StageRecipe) -> "CheckpointPush | None":
    """Add what pushes at every save to a trainer; None where the recipe does not ask for it.

    Raises:
        RecipeError: if the model is sharded, whose checkpoints have other files.
    """
    strategy = recipe["hub_strategy"]
    if not recipe["push_to_hub"] or strategy == "end":
        return None
    if strategy in RESUMABLE and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise RecipeError(
            f"hub_strategy: {strategy} pushes checkpoints of a model that each process holds whole, "
            "and this one is sharded (FSDP or DeepSpeed); write hub_strategy: end"
        )
    pusher = CheckpointPush(recipe, Path(str(trainer.args.output_dir)))
    trainer.add_callback(pusher)
    return pusher


class CheckpointPush(TrainerCallback):
    """Pushes at every save, beside training; what fails is told, counted and tried again.

    Args:
        recipe: the stage's keys.
        folder: the stage's.
    """

    def __init__(self, recipe: StageRecipe, folder: Path):
        self.repo, self.revision = recipe["hub_model_id"], recipe["hub_revision"]
        self.strategy, self.always = recipe["hub_strategy"], recipe["hub_always_push"]
        self.private = recipe["hub_private_repo"] is not False
        self.share_samples = recipe["share_samples"]
        self.folder = folder
        self.pending: list[str] = []  # checkpoints that are not yet in the repository
        self.pushed, self.failed = 0, 0
        self.ended: str | None = None  # how the last try ended, not yet told
        self.thread: threading.Thread | None = None
        if is_first_process():
            for left in folder.glob(".hub-*"):  # of a run that was killed
                shutil.rmtree(left)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to push the checkpoint that was just written, and what failed before."""
        meet()  # every process has written its state of the random numbers
        if not state.is_world_process_zero:
            return
        name = f"checkpoint-{state.global_step}"
        keeps_all = self.strategy == "all_checkpoints"
        self.pending = [*(self.pending if keeps_all else []), name]
        if self.always:
            self.wait()
        self.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell how a push ended; only this thread prints."""
        self.tell()

    def begin(self) -> None:
        """Push what is pending in a thread of its own, unless one still runs."""
        if self.thread is not None and self.thread.is_alive():
            return
        self.tell()
        names = [name for name in self.pending if (self.folder / name).is_dir()]
        # the Trainer may remove a checkpoint at the next save
        copies = [snapshot(self.folder / name) for name in names]
        self.pending = names
        self.thread = threading.Thread(target=self.push, args=(copies,), daemon=True)
        self.thread.start()

    def push(self, copies: list[Path]) -> None:
        """Push some checkpoints, oldest first, up to the first failure."""
        try:
            for copy in copies:
                self.destination()(copy)
                self.pending = [name for name in self.pending if name != copy.name]
                self.pushed += 1
        except Exception as error:
            self.failed += 1
            said = str(error) if isinstance(error, HubError) else f"{type(error).__name__}: {error}"
            self.ended = f"{copies[0].name} was not pushed ({said}); tried again at the next save"
        finally:
            for copy in copies:
                shutil.rmtree(copy.parent, ignore_errors=True)

    def destination(self) -> Callable[[Path], Any]:
        """How a checkpoint is pushed, and to where."""
        if self.strategy == "every_save":
            return self.push_weights
        return lambda copy: push_checkpoint(
            copy,
            self.repo,
            LAST if self.strategy == "checkpoint" else copy.name,
            revision=self.revision,
        )

    def push_weights(self, copy: Path) -> None:
        """Push the model as it is now to where the finished one will be, and say so in its card."""
        with tempfile.TemporaryDirectory() as scratch:
            files, _ = hub.prepare(
                copy, self.repo, Path(scratch), private=self.private,
                share_samples=self.share_samples,
            )  # fmt: skip
            with files[hub.CARD].open("a", encoding="utf-8") as card:
                card.write(IN_TRAINING.format(checkpoint=copy.name))
            size = sum(path.stat().st_size for path in files.values())
            hub.in_a_process(
                {
                    "repo": self.repo, "files": {name: str(path) for name, path in files.items()},
                    "private": self.private, "revision": self.revision or "main",
                    "message": f"{copy.name}, still in training",
                    "seconds": hub.SECONDS + size / hub.BYTES_PER_SECOND,
                }
            )  # fmt: skip

    def tell(self) -> None:
        """Say how the last push ended, if it failed and nobody has said so."""
        if self.ended is not None:
            note(self.ended)
            self.ended = None

    def wait(self) -> None:
        """Wait for the push that runs."""
        if self.thread is not None:
            self.thread.join()
        self.tell()

    def finish(self) -> None:
        """Wait for the push that runs, try once more what is pending, and say how many there were."""
        if not is_first_process() or self.thread is None:
            return
        if self.thread.is_alive():
            note(f"waiting for a checkpoint that is being pushed to {self.repo}")
        self.wait()
        if self.pending:
            self.begin()
            self.wait()
        note(
            f"checkpoints pushed to {self.repo}: {self.pushed}"
            + (f"; tries that failed: {self.failed}" if self.failed else "")
        )
