"""What can be done with what was trained: lines that can be pasted as they stand."""

import shlex
from pathlib import Path

from toolkit.recipe import Recipe, StageRecipe
from toolkit.stages.terminal import lines


def after_stage(stage: StageRecipe, folder: Path) -> None:
    """Print how to load, merge, serve, chat with and push a trained stage.

    transformers 5.23 serves whole models only, so an adapter is merged into a copy of its base.
    """
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
    shell, served = [], place
    if stage["use_peft"]:
        served = shlex.quote(str(folder.with_name(f"{folder.name}-merged")))
        shell.append(f"toolkit merge {place} --output {served}")
    lines("in Python", python)
    lines(
        "in a shell",
        [
            *shell,
            f"transformers serve {served}     # pip install 'toolkit[serve]'",
            f"transformers chat {served}      # in another terminal",
            f"toolkit push {place} USER/NAME     # private, with a card",
        ],
    )


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
