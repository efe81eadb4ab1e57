"""Exactly which tokens will carry loss, for `toolkit inspect`."""

from collections.abc import Iterator
from typing import Any

from toolkit.data import inspect
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe, StageRecipe
from toolkit.stages import terminal
from toolkit.stages.prepared import Prepared, prepare, starting_point


def trained_stages(recipe: Recipe) -> list[StageRecipe]:
    """The stages that train on rows.

    Raises:
        RecipeError: if there is none to look into.
    """
    terminal.hide_library_bars()
    found = [stage for stage in recipe.stages if stage.stage == "sft"]
    if not found:
        names = ", ".join(stage.stage for stage in recipe.stages)
        raise RecipeError(
            f"{recipe.path}: no stage here trains with a mask (found: {names}); inspect shows that of sft"
        )
    return found


def prepared(recipe: Recipe, stage: StageRecipe) -> Prepared:
    """A stage's sequences; the tokenizer is that of the adapter it continues, if it exists yet."""
    folders = {s.name: recipe.output_dir / s.name for s in recipe.stages}
    parent = starting_point(stage, folders)
    if (
        stage["start_from"] in folders
        and not (folders[stage["start_from"]] / "stage.json").exists()
    ):
        parent = None
    return prepare(stage, parent)


def trained_tokens(recipe: Recipe, *, rows: int | None = None) -> Iterator[dict[str, Any]]:
    """One object per training sequence: `row`, `input_ids`, `labels`, `text`, `spans`.

    Args:
        recipe: a resolved recipe.
        rows: how many sequences per stage; None for all.
    """
    for stage in trained_stages(recipe):
        found = prepared(recipe, stage)
        dataset = found.sequences["train"].dataset
        for index in range(len(dataset) if rows is None else min(rows, len(dataset))):
            yield inspect.to_json(dataset[index], found.tokenizer)


def show_trained_tokens(recipe: Recipe, *, rows: int) -> None:
    """Print statistics of every data set, and the first sequences with the trained tokens coloured.

    Args:
        recipe: a resolved recipe.
        rows: how many sequences per stage.
    """
    console = terminal.console()
    for stage in trained_stages(recipe):
        terminal.headline(stage.stage, stage.name, str(recipe.path or ""))
        found = prepared(recipe, stage)
        for line in [*found.rows.notes, *found.change.notes]:
            terminal.note(line)
        console.print(inspect.statistics(found.sequences))
        dataset = found.sequences["train"].dataset
        for index in range(min(rows, len(dataset))):
            console.print(inspect.render(dataset[index], found.tokenizer))
