"""How long a stage is: optimizer steps, tokens, warm-up, and how often it saves and evaluates."""

import math
from dataclasses import dataclass
from typing import Any

from toolkit.data.sequence_report import readable
from toolkit.preflight.look import Look
from toolkit.recipe import StageRecipe
from toolkit.stages.arguments import batch_arguments
from toolkit.stages.processes import processes

SUBJECT = "schedule"
LONG = 50  # steps, of which one would not lose all


@dataclass(frozen=True)
class Plan:
    """A stage's steps.

    Attributes:
        steps: of the optimizer.
        batch: sequences or completions of one step, over all devices.
        each: of them, what one device takes at once.
        times: batches of a device in a step.
        tokens: that go through the model in training, padding left out.
        sampled: completions in all; 0 where nothing is sampled.
        rollout: completions that one device samples together.
    """

    steps: int
    batch: int
    each: int
    times: int
    tokens: int
    sampled: int = 0
    rollout: int = 0


def plan(look: Look) -> Plan | None:
    """The steps that a stage will take; None if its rows are not known."""
    stage = look.stage
    if not look.lengths or not look.trains:
        return None
    each, times = batches(stage)
    batch = each * times * processes()
    if stage.stage in ("grpo", "ppo"):
        return rollouts(look, each, times, batch)
    count = sequences(look)
    steps = length(stage, count, batch)
    mean = sum(look.lengths) / len(look.lengths)
    pairs = 2 if stage.stage in ("reward", "dpo") else 1
    return Plan(steps, batch, each, times, round(steps * batch * mean * pairs))


def batches(stage: StageRecipe) -> tuple[int, int]:
    """Sequences that a device takes at once, and how many such batches make a step of it.

    Raises:
        RecipeError: if `global_batch_size` cannot be formed.
    """
    found = batch_arguments(stage)
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    each, times = (int(found.get(key) or stage[key]) for key in keys)
    return each, times


def sequences(look: Look) -> int:
    """How many sequences there are to train, where a sample was looked at by its share."""
    assert look.rows is not None
    seen = len(look.lengths) / max(1, len(look.rows.train)) * look.total
    if look.stage.get("packing"):
        seen = seen * (sum(look.lengths) / len(look.lengths)) / int(look.stage["max_length"] or 1)
    return max(1, round(seen))


def length(stage: Any, count: int, batch: int) -> int:
    """Optimizer steps of so many sequences."""
    if int(stage["max_steps"]) > 0:
        return int(stage["max_steps"])
    return math.ceil(math.ceil(count / batch) * float(stage["num_train_epochs"]))


def rollouts(look: Look, each: int, times: int, batch: int) -> Plan:
    """Of a stage that learns from what it samples."""
    stage = look.stage
    answers = int(stage["num_generations"] or 1)
    size = (
        stage["generation_batch_size"]
        or int(stage["steps_per_generation"] or times) * each * processes()
    )
    rounds = int(stage["num_iterations"] or 1)
    # every rollout is trained num_iterations times, in steps of a batch
    per_rollout = max(1, int(size) * rounds // batch)
    prompts = int(size) // answers
    epoch = look.total // max(1, prompts) * per_rollout
    steps = int(stage["max_steps"])
    if steps <= 0:
        steps = math.ceil(epoch * float(stage["num_train_epochs"]))
    mean = sum(look.lengths) / len(look.lengths) + int(stage["max_completion_length"])
    sampled = math.ceil(steps / per_rollout) * int(size)
    return Plan(
        steps, batch, each, times, round(steps * batch * mean), sampled, int(size) // processes()
    )  # fmt: skip


def check(look: Look) -> None:
    """Say how long it is, and what never happens."""
    found = plan(look)
    if found is None:
        if look.stage.stage == "pretrain":
            look.warn(SUBJECT, "unchecked: the tokenizer that would count is trained in the stage")
        if look.stage.stage == "rejection":
            look.warn(SUBJECT, "unchecked: what is trained is sampled in the stage")
        return
    stage = look.stage
    warm = warmup(stage, found.steps)
    saves, evaluations = (times(stage, what, found.steps) for what in ("save", "eval"))
    look.note(
        SUBJECT, steps=found.steps, batch=found.batch, tokens=found.tokens, warmup_steps=warm,
        saves=saves, evaluations=evaluations, completions=found.sampled,
    )  # fmt: skip
    unit = "completions" if found.sampled else "sequences"
    line = f"{found.steps:,} optimizer steps of {found.batch:,} {unit}, about {readable(found.tokens)} tokens"
    if found.sampled:
        line += f" at most; {found.sampled:,} completions are sampled"
    look.ok(SUBJECT, line)
    look.ok(
        SUBJECT, f"warm-up {warm:,} steps; saves {saves:,} times, evaluates {evaluations:,} times"
    )
    prompts = found.rollout * processes() // int(stage.get("num_generations") or 1)
    if found.sampled and prompts > look.total:
        look.error(
            SUBJECT, f"a rollout takes {prompts:,} prompts, and there are {look.total:,}",
            "a smaller generation_batch_size, or more prompts", 3,
        )  # fmt: skip
    elif found.steps == 0:
        look.error(SUBJECT, "there are too few rows for one step", "lower global_batch_size", 4)
    elif warm > found.steps:
        look.error(
            SUBJECT, f"warm-up {warm:,} is longer than the run", "write a share: warmup_steps: 0.1"
        )
    elif found.steps < 10:
        look.warn(
            SUBJECT, f"{found.steps} steps are very few", "more rows or epochs, or a smaller batch"
        )
    if stage["save_strategy"] == "steps" and not saves and found.steps >= LONG:
        look.warn(
            SUBJECT, f"save_steps {stage['save_steps']:g} is more than the run: nothing is saved "
            "before its end", f"save_steps: {max(1, found.steps // 4)}",
        )  # fmt: skip


def warmup(stage: Any, steps: int) -> int:
    """Steps of warm-up; a share of the run where it is below one, as transformers has it."""
    asked = float(stage["warmup_steps"] or 0)
    return math.ceil(steps * asked) if asked < 1 else int(asked)


def times(stage: Any, what: str, steps: int) -> int:
    """How often a stage saves or evaluates."""
    strategy = str(stage[f"{what}_strategy"])
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(float(stage["num_train_epochs"]))
    every = stage[f"{what}_steps"] or stage["logging_steps"]
    every = every if every >= 1 else max(1, math.ceil(steps * every))
    return int(steps // every)
