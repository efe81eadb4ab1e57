"""What a recipe pushes: each finished stage to its repository, and where that is."""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.artifacts import hub, hub_access, hub_names
from toolkit.errors import HubError, RecipeError
from toolkit.recipe import Recipe, StageRecipe
from toolkit.recipe.sharing import FROM_HUB, LONGEST, RESUMABLE
from toolkit.stages.processes import from_first, is_first_process
from toolkit.stages.terminal import note


def pushes(stage: StageRecipe) -> bool:
    """Whether a stage is pushed when it is finished."""
    return bool(stage.get("push_to_hub"))


def pulls(stage: StageRecipe) -> bool:
    """Whether a stage goes on from a checkpoint in its repository."""
    return stage.get("resume_from_checkpoint") == FROM_HUB


def is_private(stage: StageRecipe) -> bool:
    """Whether a stage's repository must be private; the Hub's own default is not asked."""
    return stage["hub_private_repo"] is not False


def with_repositories(recipe: Recipe) -> Recipe:
    """The recipe with the whole id of every repository, once it is sure that it can be written to.

    Raises:
        RecipeError: if two stages have the same repository.
        HubError: if the Hub cannot be asked, or would refuse a push.
    """
    pushed = any(map(pushes, recipe.stages))
    unnamed = any(pulls(s) and "/" not in (s["hub_model_id"] or "") for s in recipe.stages)
    if not pushed and not unnamed:
        return recipe
    # one process asks for all: the Hub allows few such questions
    who = from_first(hub_access.account() if is_first_process() else None)
    named = with_ids(recipe, who)
    if is_first_process():
        check(named, who)
    return named


def with_ids(recipe: Recipe, who: Mapping[str, Any]) -> Recipe:
    """The recipe with the whole id of every repository.

    Args:
        recipe: as it was written.
        who: what the Hub says of the account, whose namespace stands where none is written.

    Raises:
        RecipeError: if two stages have the same repository.
    """
    stages: list[StageRecipe] = []
    taken: dict[tuple[str, str], str] = {}
    for stage in recipe.stages:
        if pushes(stage) or pulls(stage):
            repo = stage["hub_model_id"] or default_name(recipe, stage)
            repo = repo if "/" in repo else f"{who['name']}/{repo}"
            other = taken.setdefault((repo, stage["hub_revision"] or "main"), stage.name)
            if other != stage.name:
                raise RecipeError(
                    f"hub_model_id: the stages {other!r} and {stage.name!r} are both pushed to "
                    f"{repo}; give each its own, or another hub_revision"
                )
            stage = replace(stage, written={**stage.written, "hub_model_id": repo})
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def default_name(recipe: Recipe, stage: StageRecipe) -> str:
    """A repository's name where none is written: the run's folder, in a pipeline with the stage."""
    parts = [recipe.output_dir.absolute().name, *([stage.name] if recipe.is_pipeline else [])]
    name = re.sub(r"[^A-Za-z0-9_]+", lambda found: found[0][0], "-".join(parts))
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    return name[: LONGEST // 2].strip("-.") or "model"


def check(recipe: Recipe, who: Mapping[str, Any]) -> list[hub_access.Target]:
    """Every repository that a recipe with whole ids pushes to, once it is sure that it may.

    Raises:
        HubError: if a push would be refused, as far as that is known before training.
    """
    targets = [
        hub_access.Target(
            stage.name, stage["hub_model_id"], is_private(stage), stage["hub_strategy"] in RESUMABLE
        )
        for stage in recipe.stages
        if pushes(stage)
    ]
    hub_access.check_writable(targets, who)
    open_ones = [stage for stage in recipe.stages if pushes(stage) and not is_private(stage)]
    bases = {str(stage.get("model_name_or_path")) for stage in open_ones if stage.get("use_peft")}
    asked = [("model", base) for base in bases if hub_names.is_id(base)]
    _, hidden = hub_names.ask_about(asked, time.monotonic() + hub_access.SECONDS, note)
    if hidden:
        raise HubError(
            f"hub_private_repo: false: the base {hidden[0]} is private, so nobody could load an "
            "adapter for it, and its name would be told; leave the key out"
        )
    return targets


def checked(recipe: Recipe) -> list[str]:
    """Whether every push would be allowed, in lines for a person; the Hub may be out of reach.

    Raises:
        RecipeError: if two stages have the same repository.
        HubError: if the Hub would refuse a push.
    """
    if not any(map(pushes, recipe.stages)):
        return []
    try:
        who = hub_access.account()
        found = check(with_ids(recipe, who), who)
    except hub_access.Unreachable as error:
        return [f"unchecked: whether a push would be allowed ({error})"]
    return [f"{target.repo}: your token may write there" for target in found]


def push_finished(stage: StageRecipe, folder: Path) -> str | None:
    """Push a finished stage, if its recipe says so; a failure comes back as one line.

    Where the Hub holds the same bytes already, there is no new commit.
    """
    if not pushes(stage):
        return None
    try:
        done = hub.push(
            folder, stage["hub_model_id"], private=is_private(stage),
            revision=stage["hub_revision"], share_samples=stage["share_samples"], tell=note,
        )  # fmt: skip
    except HubError as error:
        note(f"not pushed: {error}")
        return str(error)
    for line in done.notes:
        note(line)
    note(f"pushed: {done.url}" if done.made else f"the Hub holds it already: {done.url}")
    return None
