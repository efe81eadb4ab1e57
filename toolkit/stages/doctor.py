"""The doctor: says once, in words, why a training cannot be learning.

It looks at what is logged, and before the first step at the settings and the first rows; the rules
are in `toolkit.stages.symptoms`.
"""

from itertools import islice
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.data.chat_tokens import IGNORED
from toolkit.recipe import StageRecipe
from toolkit.rewards import Checked
from toolkit.stages import symptoms
from toolkit.stages.diagnoses import Diagnoses
from toolkit.stages.symptoms import Training

ROWS = 64  # that are looked at before the first step
REMEMBERED = 400  # lines of the log that the rules see, besides the first ones
FIRST = 20
OF_REWARDS = {"constant": "equal_rewards", "unscored": "never_scored"}
"""What a reward tells by itself, by the doctor's name for it."""


class Doctor(TrainerCallback):
    """Looks at every log entry, and tells each diagnosis once.

    Args:
        trainer: whose training it is.
        recipe: the stage's keys.
        diagnoses: what was told.
        format: of the rows that are trained: "messages", "prompt_completion" or "text".
    """

    def __init__(
        self, trainer: Any, recipe: StageRecipe, diagnoses: Diagnoses, *, format: str = ""
    ):
        self.trainer, self.recipe, self.diagnoses, self.format = trainer, recipe, diagnoses, format
        self.log: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what is known of a training that goes on, and look at what it begins with."""
        self.diagnoses.resume(state.global_step)
        self.log = [dict(entry) for entry in state.log_history]
        self.training = self.known(state)
        for name, rule in symptoms.BEFORE.items():
            self.apply(name, rule, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at what was logged; held-out numbers and the summary at the end are none of it."""
        if not logs or "train_runtime" in logs or any(key.startswith("eval_") for key in logs):
            return
        self.log = [*self.log[:FIRST], *self.log[FIRST:][-REMEMBERED:]]
        self.log.append({"step": state.global_step, **logs})
        self.hear_rewards(state.global_step)
        for name, rule in symptoms.RULES.items():
            self.apply(name, rule, state.global_step)

    def apply(self, name: str, rule: Any, step: int) -> None:
        """Tell what a rule finds."""
        if self.diagnoses.has(name) or (found := rule(self.log, self.training)) is None:
            return
        value, message = found
        self.diagnoses.tell(name, message, step, value)
        about = next((what for what, known in OF_REWARDS.items() if known == name), None)
        for reward in self.rewards() if about else ():
            if reward.__name__ in message:
                reward.told.setdefault(str(about), message)  # it keeps silent then

    def hear_rewards(self, step: int) -> None:
        """Take down what rewards have told by themselves, which is not told again."""
        told: set[str] = set()
        for reward in self.rewards():
            for about in OF_REWARDS.keys() & reward.told.keys():
                told.add(reward.__name__)
                self.diagnoses.tell(OF_REWARDS[about], reward.told[about], step, None, aloud=False)
        self.training = Training(**{**vars(self.training), "told": frozenset(told)})

    def rewards(self) -> list[Checked]:
        """The rewards of this training."""
        functions = getattr(self.trainer, "reward_funcs", None) or ()
        return [reward for reward in functions if isinstance(reward, Checked)]

    def known(self, state: TrainerState) -> Training:
        """What is known of this training."""
        args, model = self.trainer.args, self.trainer.model
        config = model.config.get_text_config()
        return Training(
            stage=self.recipe.stage,
            learning_rate=args.learning_rate,
            adapter=isinstance(model, PeftModel),
            beta=getattr(args, "beta", 0.0),
            num_iterations=getattr(args, "num_iterations", 1),
            max_completion_length=getattr(args, "max_completion_length", 0) or 0,
            vocabulary=config.vocab_size,
            max_steps=state.max_steps,
            stop=getattr(self.trainer.processing_class, "eos_token", None) or "its stop token",
            masked=masked_share(self.trainer.train_dataset),
            format=self.format,
            same_pairs=same_share(self.trainer.train_dataset),
        )


def first_rows(dataset: Any, *columns: str) -> list[Any]:
    """The first rows of a data set; none where it has not these columns, or cannot be looked into."""
    known = getattr(dataset, "column_names", None) or ()
    if not set(columns) <= set(known) or not hasattr(dataset, "__len__"):
        return []
    return list(islice(dataset.select_columns(list(columns)), ROWS))


def masked_share(dataset: Any) -> float | None:
    """The share of tokens without loss in the first rows; None where rows have no labels."""
    labels = [label for row in first_rows(dataset, "labels") for label in row["labels"]]
    return sum(label == IGNORED for label in labels) / len(labels) if labels else None


def same_share(dataset: Any) -> float:
    """The share of the first pairs whose answers are the same tokens."""
    rows = first_rows(dataset, "chosen_ids", "rejected_ids")
    same = [row["chosen_ids"] == row["rejected_ids"] for row in rows]
    return sum(same) / len(same) if same else 0.0
