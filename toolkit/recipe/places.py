"""Texts and paths of a recipe: what no file can be called, and where the run's folder may be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from toolkit.errors import RecipeError
from toolkit.recipe.keys import ADAPTER
from toolkit.recipe.ranges import shown

# Keys whose texts, or those inside them, may be a place on this disk.
PLACES = {
    "model_name_or_path", "dataset_name", "datasets", "tasks", "of", "start_from", "reward_funcs",
    "gold_funcs",
    "value_start_from", "chat_template_path", "trainer_class", "output_dir", "deepspeed",
    "fsdp_config", "accelerator_config", "resume_from_checkpoint", "traces",
}  # fmt: skip
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes; what file systems take


def check_texts(key: str, value: Any, where: str) -> None:
    """Check every text in a value: that it can be written, and where it is a place, looked for.

    Raises:
        RecipeError: for a NUL, half of a surrogate pair, a user that is not there, too long a name.
    """
    if isinstance(value, Mapping):
        for name, item in cast(Mapping[Any, Any], value).items():
            check_texts(key, name, where)
            check_texts(key, item, where)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            check_texts(key, item, where)
    elif isinstance(value, str):
        _check_text(key, value, where)


def _check_text(key: str, text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"{where}: {key} has half of a surrogate pair, which is no character"
        ) from error
    if "\0" in text:
        raise RecipeError(f"{where}: {key} has a NUL, which no name or path can have")
    if key not in PLACES:
        return
    path = text.removeprefix(ADAPTER)
    if max(len(name.encode()) for name in path.split("/")) > LONGEST_NAME or (
        len(path.encode()) > LONGEST_PATH
    ):
        raise RecipeError(f"{where}: {key} is too long to be a path, found {shown(text)}")
    try:
        Path(path).expanduser()
    except RuntimeError as error:
        raise RecipeError(
            f"{where}: {key}: there is no such user here, found {shown(text)}; write the whole path"
        ) from error


def check_output_dir(value: str, where: str, *, from_file: bool, key: str = "output_dir") -> None:
    """Check where a run, or the traces of many, are to be written.

    Raises:
        RecipeError: if it is no folder's name, or a file climbs with it to where it was not put.
    """
    if not value.strip():
        raise RecipeError(f"{where}: {key} must name a folder, found {shown(value)}")
    if from_file and ".." in Path(value).parts:
        raise RecipeError(
            f"{where}: {key} may not have '..' in a file, found {shown(value)}; write the "
            f"folder itself, or say --{key} on the command line"
        )
