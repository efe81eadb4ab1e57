"""What can be done with what was trained: lines that can be pasted as they stand."""

import shlex
from pathlib import Path

from toolkit.artifacts.card_loading import has_template
from toolkit.recipe import Recipe, StageRecipe
from toolkit.stages.terminal import lines


def after_stage(stage: StageRecipe, folder: Path) -> None:
    """Print how to load, chat with, serve, merge and push a trained stage."""
    if stage.stage == "evaluate":
        return
    if stage.stage == "rank":
        after_rank(stage, folder)
        return
    if stage.stage == "reward":
        after_reward(stage, folder)
        return
    place = shlex.quote(str(folder))
    python = ["import toolkit", f"model, tokenizer = toolkit.load({str(folder)!r})"]
    if stage.stage == "pretrain":
        lines("in Python", python)
        lines(
            "in a shell",
            [f"toolkit sft --model_name_or_path {place} --dataset_name chats.jsonl"],
        )
        return
    uses = [f'toolkit generate {place} --prompt "…"']
    if has_template(folder):
        uses = [
            f"toolkit chat {place}",
            f"toolkit serve {place}     # pip install 'toolkit[serve]'",
        ]
    if stage["use_peft"]:  # for programs that load no adapters
        merged = shlex.quote(str(folder.with_name(f"{folder.name}-merged")))
        uses.append(f"toolkit merge {place} --output {merged}")
    lines("in Python", python)
    lines("in a shell", [*uses, f"toolkit push {place} USER/NAME     # private, with a card"])


def after_rank(stage: StageRecipe, folder: Path) -> None:
    """Print how to train on ranked answers."""
    words = ["toolkit reward", "--dataset_name", shlex.quote(str(folder / "ranked.jsonl"))]
    for key in ("model_name_or_path", "start_from"):
        if (value := stage.written.get(key)) is not None:
            beside = folder.parent / str(value)  # of an earlier stage of the same run
            place = beside if key == "start_from" and beside.is_dir() else value
            words += [f"--{key}", shlex.quote(str(place))]
    lines("in a shell, for a reward model of these ranks", [" ".join(words)])


def after_reward(stage: StageRecipe, folder: Path) -> None:
    """Print how to score with a reward model, and how to train against it."""
    lines(
        "in Python, for the score of a prompt and its answer as token ids",
        [
            "from toolkit.models.reward import load_reward_model",
            f"model, tokenizer = load_reward_model({str(folder)!r})",
            "model.score([[…]])",
        ],
    )
    if stage["use_peft"]:
        served = folder.with_name(f"{folder.name}-merged")
        lines(
            "in a shell, for a whole model that AutoModelForSequenceClassification loads",
            [f"toolkit merge {shlex.quote(str(folder))} --output {shlex.quote(str(served))}"],
        )
    lines(
        "in a recipe of stage grpo, ppo, rank or evaluate", [f'reward_funcs: ["adapter:{folder}"]']
    )


def after_run(recipe: Recipe) -> None:
    """Print what to look at and to try when a pipeline is done."""
    if recipe.path is None or not recipe.is_pipeline:
        return
    path, again = (
        shlex.quote(str(recipe.path)),
        recipe.output_dir.with_name(f"{recipe.output_dir.name}-2"),
    )
    lines(
        "what to try next",
        [
            f"toolkit inspect {path}     # which tokens were trained",
            f"toolkit run {path} --seed 2 --output_dir {shlex.quote(str(again))}",
        ],
    )
