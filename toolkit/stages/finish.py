"""How every training stage runs: train, hold out, save, and note what the proof must find again."""

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerState

from toolkit.artifacts import proof_file
from toolkit.artifacts.base_identity import base_identity
from toolkit.artifacts.manifest import PROOF
from toolkit.data.probe import probe_words
from toolkit.errors import TrainingError
from toolkit.models import adapters, digests, proof
from toolkit.models.load import adapter_config
from toolkit.models.value import VALUE
from toolkit.recipe import StageRecipe
from toolkit.stages.checkpoint_push import pusher_of, restore
from toolkit.stages.checkpoints import AtTheEndOfAnEpoch
from toolkit.stages.device_faults import of_device
from toolkit.stages.diagnoses import Diagnoses
from toolkit.stages.disk import warn_if_scarce
from toolkit.stages.doctor import Doctor
from toolkit.stages.fast_path import train_plain
from toolkit.stages.guards import guarded
from toolkit.stages.position import is_sharded
from toolkit.stages.prepared import RowsAgain
from toolkit.stages.processes import is_first_process, writes_here
from toolkit.stages.proved import Saved
from toolkit.stages.resuming import clean, found
from toolkit.stages.reward_guard import NONE, RewardGuard
from toolkit.stages.terminal import ProgressLine, note
from toolkit.stages.tracked import tracked
from toolkit.stages.trackers import keep_private
from toolkit.stages.warmup import WarmupFits

PROBE_SEQUENCES = 4  # enough to notice a lost or changed tensor, few enough to cost one step
PROBE_TOKENS = 64
REFUSALS = (ValueError, TypeError, KeyError, NotImplementedError, UnpicklingError)


def train(trainer: Trainer, recipe: StageRecipe, *, format: str = "") -> None:
    """Train, from the newest whole checkpoint if the stage was interrupted.

    Args:
        trainer: of a stage.
        recipe: the stage's keys.
        format: of the rows that are trained: "messages", "prompt_completion" or "text".

    Raises:
        TrainingError: if the device has not enough memory, no checkpoint that is there can be
            resumed from, or a library stops.
        RecipeError: if the checkpoint that the recipe names is not there, or is of another run.
    """
    directory = Path(str(trainer.args.output_dir))
    progress = ProgressLine(directory / "log.jsonl")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    watch(trainer, recipe, directory / "log.jsonl", format)
    note_start(trainer)
    keep_private(trainer, recipe)
    pusher = pusher_of(trainer, recipe)
    restore(recipe, directory)
    clean(directory)
    checkpoint = found(recipe, directory)
    as_asked(trainer, recipe)
    if checkpoint and has_ended(trainer, checkpoint):
        note(f"training had ended: its last checkpoint is taken, {checkpoint}")
        take_up(trainer, checkpoint)
        return
    resumed_at = state_of(checkpoint).global_step if checkpoint else 0
    if checkpoint:
        note(f"resuming from {checkpoint}")
    warn_if_scarce(trainer)
    try:
        with guarded(trainer), tracked(trainer, recipe, checkpoint):
            # the last of them: it puts off whatever save the others ask for
            trainer.add_callback(AtTheEndOfAnEpoch())
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (*REFUSALS, RuntimeError) as error:  # of which what a device lacks is a kind
        told = of_device(error) or refused(error, trainer, recipe)
        if told is None:
            raise
        raise told from error
    except KeyboardInterrupt:
        pusher = None  # what is interrupted waits for no push
        raise
    finally:
        progress.stop()
        if pusher is not None:
            pusher.finish()
    if checkpoint:  # which save_total_limit may have removed by now
        count_all(trainer, resumed_at)


def as_asked(trainer: Any, recipe: StageRecipe) -> None:
    """Have a trainer resume as the command asks."""
    trainer.fresh_optimizer = recipe.fresh_optimizer
    trainer.new_settings = bool(recipe.allow_change)


def refused(error: Exception, trainer: Trainer, recipe: StageRecipe) -> TrainingError | None:
    """What upstream has refused while it trained, in one line; None for an error of another kind."""
    if not isinstance(error, REFUSALS):
        return None
    said = " ".join(str(error).split())
    return TrainingError(
        f"stage {recipe.name!r} stopped at step {trainer.state.global_step}: "
        f"{type(error).__name__}: {said} (--debug shows where)"
    )


def watch(trainer: Any, recipe: StageRecipe, log_path: Path, format: str) -> None:
    """Have the doctor look at what is logged, and the guard at what is sampled."""
    trainer.add_callback(WarmupFits(recipe))
    trainer.diagnoses = Diagnoses(log_path)
    trainer.add_callback(Doctor(trainer, recipe, trainer.diagnoses, format=format))
    trainer.reward_guard = None
    if hasattr(trainer, "gold_funcs") and recipe["guard"] != NONE:
        trainer.reward_guard = RewardGuard(trainer, recipe, trainer.diagnoses)
        trainer.add_callback(trainer.reward_guard)


def note_start(trainer: Any) -> None:
    """Note the weights that training starts from, so that `save` can tell which of them moved."""
    trainer.started_from = None
    if not is_first_process():
        return
    # what an earlier run in this folder was proved to be
    (Path(trainer.args.output_dir) / PROOF).unlink(missing_ok=True)
    if is_sharded(trainer) and not on_shards(trainer):
        return
    adapters_trained = ["default", *([VALUE] if proof.has_critic(trainer.model) else [])]
    trainer.started_from = digests.start_of(
        trainer.model, adapters_trained, with_base=not is_sharded(trainer)
    )


def on_shards(trainer: Trainer) -> bool:
    """Whether an adapter can be proved on the shards that the processes hold: by FSDP2."""
    return trainer.accelerator.is_fsdp2 and isinstance(trainer.model, PeftModel)


def state_of(checkpoint: Path) -> TrainerState:
    """What the Trainer noted in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def has_ended(trainer: Trainer, checkpoint: Path) -> bool:
    """Whether a checkpoint is that of the last step; from there, the Trainer would take one more."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return False  # its weights cannot be loaded without training
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    return state_of(checkpoint).global_step >= values[-1]


def take_up(trainer: Trainer, checkpoint: Path) -> None:
    """Load what training ended with; transformers 5.23 has no public name for it."""
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state_of(checkpoint)
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    trainer.state.log_history.append({})
    count_all(trainer, trainer.state.global_step)


def count_all(trainer: Trainer, resumed_at: int) -> None:
    """Correct the summary of a resumed run, in which transformers counts what came after alone.

    The steps before are known from what was logged. TRL's `num_tokens` is not, and left out.
    """
    history, done = trainer.state.log_history, 0
    before = 0.0
    for entry in history:
        if "loss" in entry and entry["step"] <= resumed_at:
            before += entry["loss"] * (entry["step"] - done)
            done = entry["step"]
    after = trainer.state.global_step - resumed_at
    if done + after:
        since = history[-1].get("train_loss", 0.0) * after
        history[-1]["train_loss"] = (before + since) / (done + after)
    for entry in history:
        entry.pop("num_tokens", None)


def save(
    trainer: Trainer,
    *,
    check: proof.Check = proof.LOG_PROBABILITIES,
    ids_of: Callable[[Any], list[int]] = itemgetter("input_ids"),
    rows_again: RowsAgain | None = None,
) -> Saved:
    """Write the artefact and note what it must give when it is loaded again.

    Args:
        trainer: after training, with a tokenizer as its processing class; every process calls this.
        check: which numbers it must give.
        ids_of: a whole sequence of a training row.
        rows_again: as of `Saved`.
    """
    directory = Path(str(trainer.args.output_dir))
    # with torch_compile accelerate's wrapper stays around the model, in the name of every weight
    trainer.model = getattr(trainer.model, "_orig_mod", trainer.model)
    train_plain(trainer)
    metrics = measured(trainer)
    probe: list[list[int]] = []
    if not is_sharded(trainer) or on_shards(trainer):
        rows = range(min(PROBE_SEQUENCES, len(trainer.train_dataset)))  # pyright: ignore
        probe = [ids_of(trainer.train_dataset[row])[:PROBE_TOKENS] for row in rows]  # pyright: ignore
    trainer.save_model(str(directory))
    # mixed precision wraps the forward pass; whoever loads the adapter has no such wrapper
    model = trainer.accelerator.unwrap_model(
        trainer.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False
    )
    # TRL trains an adapter over a quantized base in bfloat16; PEFT loads it in float32
    adapters.as_float32(model)
    expected = proof.expect(model, probe, check) if probe else proof.Expected([], [])
    saved = Saved(directory, metrics, expected, trainer.args.device, check, rows_again=rows_again)
    saved.watched = watched_of(trainer)
    saved.shards = model if is_sharded(trainer) and probe else None
    if writes_here():  # it holds the Hub token in clear, and nothing reads it
        (directory / "training_args.bin").unlink(missing_ok=True)
    if trainer.is_world_process_zero():
        adapters.save_beside(trainer.model, trainer.processing_class, directory)
        saved.failure = what_went_wrong(trainer, model, expected)
        saved.words = probe_words(trainer.processing_class)  # pyright: ignore[reportArgumentType]
        saved.identity = identity_below(directory)
        remembered = {
            "check": check.name,
            "device": saved.device.type,
            "words": saved.words,
            "base_identity": saved.identity,
        }
        proof_file.write_proof(directory, remembered | expected.as_dict())
    return saved


def watched_of(trainer: Any) -> dict[str, Any]:
    """What doctor and guard found, and the precision computed in, for the manifest."""
    guard = trainer.reward_guard
    always = {
        "diagnoses": trainer.diagnoses.for_manifest(),
        "mixed_precision": trainer.accelerator.mixed_precision,
    }
    return always | ({"guard": guard.for_manifest()} if guard is not None else {})


def what_went_wrong(trainer: Any, model: Any, expected: proof.Expected) -> str | None:
    """A base that changed, or an adapter that did not, in one line; None if all is well."""
    start = getattr(trainer, "started_from", None)
    if start is None:
        return None
    if start.base and (changed := digests.changed_base(start, model)) is not None:
        return changed
    now = {"default": expected.tensors, VALUE: expected.value_tensors}
    if (still := digests.unmoved(start, now, model)) is None:
        return None
    steps = trainer.state.global_step
    if not learning_rates(trainer, steps):
        note(f"nothing was learnt: warmup kept the learning rate at 0 in all of {steps} step(s)")
        return None
    return (
        f"{still} is to the bit what the stage started from, so nothing was learnt in {steps:,} "
        "steps; look at grad_norm and the rewards in log.jsonl, and at learning_rate"
    )


def learning_rates(trainer: Any, steps: int) -> bool:
    """Whether the schedule gave a learning rate above 0 in one of the steps; True if not known."""
    schedule = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    factors = getattr(schedule, "lr_lambdas", None)
    return not factors or any(factor(step) > 0 for step in range(steps) for factor in factors)


def measured(trainer: Trainer) -> dict[str, Any]:
    """The last value of everything logged, and a last look at the held-out rows."""
    metrics: dict[str, Any] = {}
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    for entry in trainer.state.log_history:
        metrics |= entry
    metrics |= {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    for key in ("epoch", "step", "total_flos"):
        metrics.pop(key, None)
    return metrics


def identity_below(directory: Path) -> dict[str, Any] | None:
    """What the base of a saved adapter is; None for a whole model, or a base that has no name."""
    config = adapter_config(str(directory)) or {}
    name = config.get("base_model_name_or_path")
    return base_identity(str(name), config.get("revision")) if name else None
