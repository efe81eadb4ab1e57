"""The guard of rollouts: follows what the reward does not see, and warns or stops.

Of every rollout, GRPO's and PPO's, it measures the gold check, length and repetition, beside the
reward; what it makes of them is in `toolkit.stages.hacking`. With `guard: stop`, training ends once
gold has fallen, and the checkpoint with the most gold becomes the stage's result.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.artifacts import checkpoint as on_disk
from toolkit.errors import RecipeError, TrainingError
from toolkit.recipe import StageRecipe
from toolkit.rewards import Checked
from toolkit.rewards.diversity import compression_ratio, distinct_ngrams
from toolkit.rewards.rows import texts
from toolkit.stages import hacking
from toolkit.stages.diagnoses import Diagnoses
from toolkit.stages.hacking import Fall, Rollout
from toolkit.stages.processes import from_all
from toolkit.stages.rollout_signals import agreement, is_model, mean, scores_of
from toolkit.stages.terminal import note

WARN, STOP, NONE = "warn", "stop", "none"
NO_COLUMNS = ("prompt", "completion", "completion_ids")


class RewardGuard(TrainerCallback):
    """Measures each rollout of a GRPOTrainer, and acts on it at the end of the step.

    Args:
        trainer: with `gold_funcs`, the gold checks, each a `Checked`.
        recipe: says whether it stops.
        diagnoses: what was told.
    """

    def __init__(self, trainer: Any, recipe: StageRecipe, diagnoses: Diagnoses):
        self.trainer, self.diagnoses = trainer, diagnoses
        self.golds: list[Checked] = trainer.gold_funcs
        self.mode = recipe["guard"]
        self.steps_key = recipe.where.get("save_steps", f"stage {recipe.name!r}")
        self.taken: dict[str, Any] | None = None
        self.is_training = True
        self.parts: list[Rollout] = []
        # on the trainer, so that its checkpoints hold it
        trainer.rollouts_measured = []
        self.held_out = trainer.args.eval_strategy != "no" and trainer.eval_dataset is not None
        trainer._calculate_rewards = self.watched(trainer._calculate_rewards)

    @property
    def rollouts(self) -> list[Rollout]:
        """What was measured so far, the oldest first."""
        return self.trainer.rollouts_measured

    def watched(self, calculate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A trainer's `_calculate_rewards` (TRL 1.16) whose rollouts are measured too."""

        def calculate_rewards(
            inputs: Any, prompts: Any, completions: Any, completion_ids: Any, *more: Any
        ) -> Tensor:
            rewards = calculate(inputs, prompts, completions, completion_ids, *more)
            self.log_rewards(rewards, completions)
            self.measure(rewards, inputs, prompts, completions, completion_ids)
            return rewards

        return calculate_rewards

    def log_rewards(self, rewards: Tensor, completions: Sequence[Any]) -> None:
        """Log of each reward in how many groups it tells nothing apart, and how often it can read."""
        each = self.generations()
        for at, reward in enumerate(self.trainer.reward_funcs):
            name = f"rewards/{self.trainer.reward_func_names[at]}"
            if each > 1 and len(rewards) % each == 0:
                groups = rewards[:, at].view(-1, each)
                flat = (groups == groups[:, :1]).all(dim=1)
                self.trainer._log_metric(f"{name}/frac_zero_std", flat.float().mean().item())
            states = getattr(getattr(reward, "function", None), "states", None)
            if states is not None:
                found = states(completions)
                self.trainer._log_metric(f"{name}/parsed", sum(found) / max(1, len(found)))

    def generations(self) -> int:
        """Completions of a prompt that stand one after another."""
        trainer = self.trainer
        is_training = trainer.model.training
        return int(trainer.num_generations if is_training else trainer.num_generations_eval)

    def measure(
        self, rewards: Tensor, inputs: Any, prompts: Any, completions: Any, completion_ids: Any
    ) -> None:
        """Measure a rollout over all processes, and log what was found.

        Args:
            rewards: of the completions of all processes, (B, rewards).
            inputs: the rows of this process.
            prompts: likewise.
            completions: likewise.
            completion_ids: likewise.
        """
        own = {key: [row[key] for row in inputs] for key in inputs[0] if key not in NO_COLUMNS}
        given = own | {"prompts": prompts, "completions": completions,
                       "completion_ids": completion_ids, "trainer_state": self.trainer.state}  # fmt: skip
        signals = {
            "length": sum(map(len, completion_ids)) / len(completion_ids),
            "distinct_ngrams": distinct_ngrams(completion_ids),
            "compression_ratio": compression_ratio(texts(completions)),
        }
        scores = [scores_of(gold, given) for gold in self.golds]
        parts = from_all((signals, scores))
        signals = {name: mean([part[0][name] for part in parts]) for name in signals}
        golds = torch.tensor(
            [[score for part in parts for score in part[1][at]] for at in range(len(scores))]
        )
        self.note_rollout(rewards.cpu(), golds, signals)

    def note_rollout(self, rewards: Tensor, golds: Tensor, signals: dict[str, Any]) -> None:
        """Keep what was measured, as one rollout, and log it."""
        weights = self.trainer.reward_weights.cpu()
        trained = (rewards * weights).nansum(dim=1)
        by_gold = golds.nanmean(dim=0) if len(golds) else torch.empty(0)
        known = by_gold[~by_gold.isnan()].tolist()
        gold, error = hacking.mean_error(known, self.generations()) if known else (None, 0.0)
        judges = [
            rewards[:, at] for at, each in enumerate(self.trainer.reward_funcs) if is_model(each)
        ]
        signals["agreement"] = agreement([trained, by_gold] if known else judges)
        for at, each in enumerate(self.golds):
            self.log(f"gold/{each.__name__}/mean", golds[at].nanmean().item())
        for name, value in signals.items():
            if name != "length":  # TRL logs it
                self.log(f"guard/{name}", value)
        if self.is_training and self.trainer.model.training != self.held_out:
            step = self.trainer.state.global_step
            self.parts.append(Rollout(step, trained.mean().item(), gold, error, **signals))
            if not self.held_out:
                self.end_rollout()

    def end_rollout(self) -> None:
        """Take what was measured in several batches as one rollout."""
        self.rollouts.append(hacking.joined(self.parts))
        self.parts.clear()

    def log(self, name: str, value: float | None) -> None:
        """Log a number, if there is one; TRL takes the mean over the processes."""
        if value is not None and value == value:
            self.trainer._log_metric(name, value)

    # what is done about it

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse to promise the best checkpoint where none would be written in time.

        Raises:
            RecipeError: naming how often one is written.
        """
        every = state.save_steps if args.save_strategy == "steps" else 1
        if self.mode == STOP and every >= state.max_steps:
            raise RecipeError(
                f"{self.steps_key}: guard: stop keeps the best checkpoint, and with save_steps "
                f"{every:g} none is written before the last of {state.max_steps:,} steps; write "
                f"save_steps: {max(1, state.max_steps // 10)}"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act on what the rollouts show."""
        if not self.held_out:
            self.act(args, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act on what rollouts of held-out prompts show."""
        if self.parts:
            self.end_rollout()
            self.act(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure and log what comes later, and act on it no more."""
        self.is_training = False

    def act(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Warn of what is new; where gold has fallen, stop if the recipe says so.

        Raises:
            TrainingError: if it should stop before there is a checkpoint.
        """
        if not self.rollouts or self.taken is not None:
            return
        for name, (words, value) in hacking.warnings_of(self.rollouts).items():
            self.diagnoses.tell(
                f"guard_{name}", f"{words}: look at the completions", state.global_step, value
            )
        best = self.best()
        if self.mode == STOP and best is not None:  # is kept by the next save, whatever its age
            state.best_model_checkpoint = str(best[0])
        if (fall := hacking.fallen(self.rollouts)) is None:
            return
        words = in_words(fall)
        if self.mode == WARN:
            at = f"; the best checkpoint by gold is {best[0].name} ({best[1]:.3g})" if best else ""
            self.diagnoses.tell(
                "gold_falls", f"{words}{at}; guard: stop would end training here",
                state.global_step, fall.gold[1],
            )  # fmt: skip
            return
        if best is None:
            raise TrainingError(
                f"step {state.global_step}: {words}; the guard stops before there is a checkpoint "
                "to go back to, so nothing is kept: write a smaller save_steps"
            )
        self.diagnoses.tell("gold_falls", words, state.global_step, fall.gold[1])
        note(
            f"guard: stopped after step {state.global_step} of {state.max_steps}; the result is "
            f"{best[0].name}, the best by gold ({best[1]:.3g})"
        )
        self.taken = {"stopped_at": state.global_step, "took": best[0].name, "gold": best[1]}
        args.load_best_model_at_end = control.should_training_stop = True

    def best(self) -> tuple[Path, float] | None:
        """The checkpoint with the most gold so far, and its gold."""
        folder = Path(str(self.trainer.args.output_dir))
        there = dict(on_disk.sealed(folder))
        found = hacking.best_of(self.rollouts, there)
        return (there[found[0]], found[1]) if found else None

    def for_manifest(self) -> dict[str, Any]:
        """What was followed and what became of it, as plain data."""
        first, last = self.rollouts[:1], self.rollouts[-1:]
        return {
            "guard": self.mode,
            "gold_funcs": [gold.__name__ for gold in self.golds],
            "rollouts": len(self.rollouts),
            "first": asdict(first[0]) if first else None,
            "last": asdict(last[0]) if last else None,
            **(self.taken or {}),
        }


def in_words(fall: Fall) -> str:
    """What has happened to gold and reward, for a person."""
    before, now = fall.reward
    gamed = "the reward is being gamed" if now >= before else "training is losing what it had"
    verb = "rose" if now >= before else "fell"
    return (
        f"gold fell from {fall.gold[0]:.3g} (around step {fall.step}) to {fall.gold[1]:.3g} (standard "
        f"error of the difference {fall.error:.2g}) while the reward {verb} from {before:.3g} to "
        f"{now:.3g}: {gamed}"
    )
