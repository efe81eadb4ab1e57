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
    place, python = shlex.quote(str(folder)), ["import toolkit"]
    python.append(f"model, tokenizer = toolkit.load({str(folder)!r})")
    if stage.stage == "pretrain":
        lines("in Python", python)
        lines(
            "in a shell",
            [f"toolkit sft --model_name_or_path {place} --dataset_name chats.jsonl"],
        )
        return
    served = place
    if stage["use_peft"]:
        merged = folder.with_name(f"{folder.name}-merged")
        served = shlex.quote(str(merged))
        python += [
            f"model.merge_and_unload().save_pretrained({str(merged)!r})",
            f"tokenizer.save_pretrained({str(merged)!r})",
        ]
    lines("in Python, to load it and to merge it into its base", python)
    lines(
        "in a shell, then",
        [
            f"transformers serve {served}     # pip install 'toolkit[serve]'",
            f"transformers chat {served}      # in another terminal",
            f'hf upload USER/NAME {place} --exclude "checkpoint-*" --private',
        ],
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
