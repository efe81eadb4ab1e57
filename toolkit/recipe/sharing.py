"""Keys about what leaves this machine, that are each right and together wrong."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from toolkit.errors import RecipeError

Where = Callable[[str], str]
RESUMABLE = ("checkpoint", "all_checkpoints")
"""The values of `hub_strategy` that push what training is resumed from."""
FROM_HUB = "hub"
"""The value of `resume_from_checkpoint` that takes it from the stage's repository."""
REPO = re.compile(r"(?:[\w.-]+/)?[\w.-]+", re.ASCII)
LONGEST = 96
TABLES = ("wandb", "trackio", "all")  # where TRL 1.16 sends its tables of completions


def check_sharing(written: Mapping[str, Any], where: Where) -> None:
    """Check one stage's keys of pushing and reporting against one another.

    Args:
        written: its keys, each checked by itself.
        where: how messages name a key's place.

    Raises:
        RecipeError: for the first combination that is wrong.
    """
    if (name := written.get("hub_model_id")) is not None and not is_repo(name):
        raise RecipeError(
            f"{where('hub_model_id')}: hub_model_id must be NAMESPACE/NAME or NAME, of letters, "
            f"digits, '.', '_' and '-' (no '--', no '..', at most {LONGEST}), found {name!r}"
        )
    if written.get("push_to_hub"):
        _check_strategy(written, where)
    if not written.get("share_samples"):
        _check_completions(written, where)


def is_repo(name: str) -> bool:
    """Whether the Hub could have a repository of this name; its namespace may be left out."""
    own = name.rpartition("/")[2]
    return (
        len(name) <= LONGEST
        and REPO.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and own[0] not in "-."
        and own[-1] not in "-."
        and not own.endswith(".git")
    )


def _check_strategy(written: Mapping[str, Any], where: Where) -> None:
    strategy = written.get("hub_strategy")
    if strategy in (None, "end"):
        return
    place = f"{where('hub_strategy')}: hub_strategy: {strategy}"
    if written.get("save_strategy") == "no":
        raise RecipeError(
            f"{place} pushes at every save, and save_strategy: no saves nothing; leave one out"
        )
    if strategy not in RESUMABLE:
        return
    if written.get("hub_private_repo") is False:
        raise RecipeError(
            f"{place} pushes checkpoints, which go to a private repository alone; leave "
            "hub_private_repo: false out, and push the finished model with toolkit push --no-private"
        )
    if written.get("save_only_model"):
        raise RecipeError(
            f"{place} pushes what training is resumed from, and save_only_model: true does not save "
            "it; leave one of the two out"
        )
    if written.get("load_best_model_at_end") and strategy == "checkpoint":
        raise RecipeError(
            f"{place} keeps the newest checkpoint alone, and load_best_model_at_end needs the best; "
            "write hub_strategy: all_checkpoints"
        )


def _check_completions(written: Mapping[str, Any], where: Where) -> None:
    """Prompts and completions are rows of data: they leave this machine by the user's word alone."""
    if not written.get("log_completions"):
        return
    told = written.get("report_to") or ()
    to = [name for name in ([told] if isinstance(told, str) else told) if name in TABLES]
    if written.get("log_completions_hub_repo"):
        to.append("log_completions_hub_repo")
    if to:
        raise RecipeError(
            f"{where('log_completions')}: log_completions: true would send prompts and completions "
            f"to {to[0]}; write share_samples: true if they may leave this machine, or leave one out"
        )
