"""What watches over training: numbers that are not finite, and signals that ask it to stop.

All processes stop at the same step, for one small all-reduce in each. Losses and the norm of the
gradient are fetched from the device together, once in an optimizer step. transformers 5.23 computes
that norm in every step (trainer.py, `_get_grad_norm`, a private name), so it is not computed again.
"""

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from toolkit.artifacts.checkpoint import newest_sealed
from toolkit.errors import Interrupted, TrainingError
from toolkit.stages.batch_rows import rows_of
from toolkit.stages.checkpoint_push import CheckpointPush
from toolkit.stages.processes import from_all, largest, processes
from toolkit.stages.signals import EXIT, StopRequest, name_of, stopping_at_step_end

KEPT_OF_BATCH = ("input_ids", "attention_mask", "position_ids", "labels", "pair")
LOSS, GRADIENT, WEIGHTS = "the loss", "the gradient", "a trained weight"
LEAST_SCALE = 1.0  # below it, half precision has no room left to scale a gradient


@contextmanager
def guarded(trainer: Trainer) -> Iterator[None]:
    """Watch over the training inside the block.

    Raises:
        TrainingError: before an optimizer step whose loss or gradient is not finite, in any process.
        Interrupted: once a signal came, the step was finished and a checkpoint written.
    """
    with stopping_at_step_end() as request:
        guard = Guard(trainer, request)
        trainer.add_callback(guard)
        # transformers would log 0.0 in place of a loss that is not finite
        trainer.args.logging_nan_inf_filter = False
        step, loader = trainer.training_step, trainer.get_train_dataloader
        norm = trainer._get_grad_norm
        trainer.training_step, trainer._get_grad_norm = guard.watched(step), guard.noted(norm)
        trainer.get_train_dataloader = lambda: with_lasting_workers(loader())
        try:
            yield
            if request.number:  # after the last step
                raise guard.interrupted(request.number)
        except Exception as error:
            # a launcher's signal ends workers and other processes in the middle of the step too
            if not request.number or isinstance(error, TrainingError):
                raise
            raise guard.interrupted(request.number) from error
        finally:
            trainer.training_step, trainer.get_train_dataloader = step, loader
            trainer._get_grad_norm = norm
            trainer.remove_callback(guard)


class Guard(TrainerCallback):
    """The callback behind `guarded`.

    Args:
        trainer: whose training it watches over.
        request: what signals have asked for.
    """

    def __init__(self, trainer: Any, request: StopRequest):
        self.trainer, self.request = trainer, request
        self.batches: list[tuple[Tensor, Any]] = []  # of this step: the loss, what it is of
        self.norm: Any = 0.0  # of this step's gradient
        self.agreed = 0  # the signal that every process knows of
        self.stopped_by = 0

    def watched(self, step: Any) -> Any:
        """A trainer's `training_step` whose losses are kept until the optimizer's step."""

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            if isinstance(inputs, list):
                held: Any = inputs
            else:
                held = {key: inputs[key] for key in KEPT_OF_BATCH if key in inputs}
            loss = step(model, inputs, *args, **kwargs)
            self.batches.append((loss.detach(), held))
            return loss

        return training_step

    def noted(self, norm: Any) -> Any:
        """A trainer's `_get_grad_norm`, whose value is kept until the optimizer's step."""

        def get_grad_norm(*args: Any, **kwargs: Any) -> Any:
            self.norm = norm(*args, **kwargs)
            return self.norm

        return get_grad_norm

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop every process if a number of one is not finite, and share what signals came.

        Raises:
            TrainingError: naming the process, what it found and the rows.
        """
        # of a sharded model, the norm is sharded too
        norm = self.norm.full_tensor() if hasattr(self.norm, "full_tensor") else self.norm
        found = [loss.float() for loss, _ in self.batches]
        found.append(torch.as_tensor(norm, dtype=torch.float32, device=found[0].device))
        *losses, gradient = torch.stack(found).tolist()  # waits for the device, once
        bad = not all(map(math.isfinite, losses))
        bad_gradient = not math.isfinite(gradient) and not self.scaler_will_skip()
        number, self.agreed = largest([bad or bad_gradient, self.request.number])
        if number:
            raise self.not_finite(losses, gradient if bad_gradient else 0.0)
        self.batches.clear()

    def scaler_will_skip(self) -> bool:
        """Whether float16's loss scaling passes over this step, as it does to find its scale."""
        scaler = self.trainer.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= LEAST_SCALE

    def not_finite(self, losses: Sequence[float], gradient: float) -> TrainingError:
        """The error that every process raises: who found what, and where."""
        state, mine = self.trainer.state, ""
        bad = [not math.isfinite(loss) for loss in losses]
        if any(bad) or not math.isfinite(gradient):
            what, value = (LOSS, losses[bad.index(True)]) if any(bad) else (GRADIENT, gradient)
            held = [batch for (_, batch), is_bad in zip(self.batches, bad, strict=True) if is_bad]
            rows = rows_of(held or [batch for _, batch in self.batches], self.trainer.train_dataset)
            mine = f"{what} is {value}" + (f" ({rows})" if rows else "")
        found = list(enumerate(from_all(mine)))
        # a gradient is shared by all, so only the process with the loss tells more
        first = [(at, said) for at, said in found if said.startswith(LOSS)]
        first = first or [(at, said) for at, said in found if said]
        several = processes() > 1
        told = "; ".join(f"in process {at} {said}" if several else said for at, said in first)
        return self.error(
            f"step {state.global_step + 1} of {state.max_steps}: {told}; stopped before the "
            "optimizer's step, so no weight has changed"
        )

    def error(self, said: str) -> TrainingError:
        """An error that every process raises, with what is safe and what to do."""
        error = TrainingError(
            f"{said} ({self.kept()}); lower learning_rate or max_grad_norm, or look at the rows with "
            "toolkit inspect"
            + ("; bf16: true in place of fp16 helps too" if self.trainer.args.fp16 else "")
        )
        error.everywhere = True
        return error

    def kept(self) -> str:
        """What is on disk of this training."""
        last = newest_sealed(Path(str(self.trainer.args.output_dir)))
        return f"the last checkpoint is {last}" if last else "there is no checkpoint yet"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where a signal came, have a checkpoint written as the last thing.

        An evaluation that is due comes before it: a training that goes on from the checkpoint would
        not make up for it.

        Raises:
            TrainingError: if what would be saved is not finite.
        """
        number = self.agreed if processes() > 1 else self.request.number
        if number:
            self.stopped_by = number
            control.should_save = control.should_training_stop = True
            args.save_only_model = False  # training goes on from it
            if args.save_strategy == SaveStrategy.BEST:  # which would save it only if it is
                args.save_strategy = SaveStrategy.STEPS
            # what is interrupted is not published
            handler = self.trainer.callback_handler
            kept = [each for each in handler.callbacks if not isinstance(each, CheckpointPush)]
            handler.callbacks = kept
        if control.should_save:
            self.check_weights()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As before every checkpoint.

        Raises:
            TrainingError: if what would be saved is not finite.
        """
        if control.should_save:
            self.check_weights()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End an interrupted training, once its checkpoint is there.

        Raises:
            Interrupted: in every process.
        """
        if self.stopped_by:
            raise self.interrupted(self.stopped_by)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where a signal came after the last step, keep what was trained, and end likewise.

        Raises:
            Interrupted: in every process.
        """
        [number] = largest([self.stopped_by or self.request.number])
        if not number:
            return
        last = newest_sealed(Path(str(args.output_dir)))
        here = last is not None and last.name == f"checkpoint-{state.global_step}"
        # with the best weights in the model, these are not those of the last step
        if not here and not args.load_best_model_at_end:
            self.check_weights()
            args.save_only_model = False
            self.trainer._save_checkpoint(self.trainer.model, None)
        raise self.interrupted(number)

    def check_weights(self) -> None:
        """Refuse to put a checkpoint in the place of a good one if a weight is not finite.

        Raises:
            TrainingError: in every process.
        """
        value = largest_of(trained_by(self.trainer.optimizer))
        if largest([not math.isfinite(value)])[0]:
            raise self.error(
                f"step {self.trainer.state.global_step}: {WEIGHTS} is not finite after it, so no "
                "checkpoint was written"
            )

    def interrupted(self, number: int) -> Interrupted:
        """The exception that ends an interrupted training."""
        state = self.trainer.state
        last = newest_sealed(Path(str(self.trainer.args.output_dir)))
        again = "goes on from there" if last else "starts anew"
        return Interrupted(
            f"interrupted by {name_of(number)} after step {state.global_step} of "
            f"{state.max_steps}: {self.kept()}; the same command {again}",
            EXIT + number,
        )


def with_lasting_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Have a SIGTERM to the whole group leave the data workers alone: the last step needs them.

    torch ends them by other means, and by SIGKILL in the end.
    """
    begin = getattr(loader, "worker_init_fn", None)

    def worker_init_fn(worker: int) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        if begin is not None:
            begin(worker)

    # accelerate 1.15 iterates over the loader that its own holds, and skips to a step with the outer
    for each in {loader, getattr(loader, "base_dataloader", loader)}:
        each.worker_init_fn = worker_init_fn
    return loader


def trained_by(optimizer: Any) -> Iterator[Tensor]:
    """The weights that an optimizer changes."""
    for group in optimizer.param_groups:
        yield from group["params"]


def largest_of(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value of some tensors; not finite if one of theirs is not.

    Of a sharded tensor, this process's part.
    """
    there: list[Any] = [tensor.detach() for tensor in tensors]
    parts = [part.to_local() if hasattr(part, "to_local") else part for part in there]
    return float(get_total_norm([part for part in parts if part.numel()], math.inf))
