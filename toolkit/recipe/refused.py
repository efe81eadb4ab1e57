"""Keys that a recipe may not hold, because a file can come from anyone."""

import re
from collections.abc import Iterator
from typing import Any, cast

from toolkit.errors import RecipeError
from toolkit.recipe.ranges import shown
from toolkit.recipe.values import Given

TOKENS = ("hub_token", "push_to_hub_token", "token", "use_auth_token", "api_key")
REPO_AT_SHA = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?@[0-9a-f]{40}")
MAX_DEPTH = 50


def refuse(key: str, given: Given) -> None:
    """Check one key, before its type is.

    Raises:
        RecipeError: if it would reveal a secret, set the environment or run foreign code.
    """
    if key in TOKENS:
        raise RecipeError(
            f"{given.where}: {key!r} is refused: a secret does not belong into a recipe, which is "
            "saved with every run; log in with `hf auth login`"
        )
    if key == "env":
        raise RecipeError(
            f"{given.where}: 'env' is refused: a recipe does not change the environment; set the "
            "variables in the shell that starts the run"
        )
    if key == "trust_remote_code":
        _check_trust(given)


def refuse_nested(key: str, value: Any, where: str) -> None:
    """Check the mappings inside a key's value, such as those of `model_init_kwargs`.

    Raises:
        RecipeError: as `refuse`.
    """
    for name, item in _nested(value, 0):
        if name in TOKENS and item not in (None, False):
            raise RecipeError(
                f"{where}: {name!r} inside {key!r} is refused: a secret does not belong into "
                "a recipe, which is saved with every run; log in with `hf auth login`"
            )
        if name == "trust_remote_code" and item is not False:
            raise RecipeError(
                f"{where}: 'trust_remote_code' inside {key!r} is refused: say "
                "--trust_remote_code REPO@SHA on the command line"
            )


def _check_trust(given: Given) -> None:
    """`false` is no trust; anything else names one repository and revision, outside of files."""
    value = given.value[0] if given.origin == "flag" and given.value else given.value
    if value is False or (given.origin == "flag" and value == "false"):
        return
    if given.origin == "file":
        raise RecipeError(
            f"{given.where}: 'trust_remote_code' is refused in a file, which must not decide to run "
            "foreign code; say --trust_remote_code REPO@SHA on the command line"
        )
    if not isinstance(value, str) or not REPO_AT_SHA.fullmatch(value):
        raise RecipeError(
            f"{given.where}: trust_remote_code must be REPO@SHA, a repository and the 40-digit "
            f"revision whose code you have read, found {shown(value)}"
        )


def _nested(value: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """Every key and value of the mappings in a value."""
    if depth > MAX_DEPTH:
        raise RecipeError("a value is nested too deeply")
    if isinstance(value, dict):
        for key, item in cast(dict[Any, Any], value).items():
            yield key, item
            yield from _nested(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in cast(list[Any], value):
            yield from _nested(item, depth + 1)
