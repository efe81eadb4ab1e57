"""The names of models and data sets that a push would tell: which of them not everybody may see."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from toolkit.artifacts.card import base_of
from toolkit.artifacts.hub_commit import again
from toolkit.artifacts.hub_errors import sentence
from toolkit.artifacts.lineage import exam_rows, line_of, lineage, run_recipe
from toolkit.artifacts.manifest import read_json
from toolkit.artifacts.outgoing import is_local
from toolkit.errors import HubError
from toolkit.recipe.keys import ADAPTER

ASKED_FOR_S = 20
WITHHELD = "(a private repository)"
FILES = {".jsonl", ".json", ".csv", ".parquet", ".yaml"}  # no data set is called like one
MODELS = (
    "model_name_or_path",
    "start_from",
    "value_start_from",
    "chat_template_path",
    "hub_model_id",
)
Name = tuple[str, Any]
"""What it is, "model" or "dataset", and its id."""


def names_in(folder: Path, files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Every model and data set of the Hub that a card, a manifest or an adapter's settings name.

    Args:
        folder: of the stage.
        files: what is pushed.
    """
    stages = lineage(folder)
    run = run_recipe(folder)
    recipes = [run, *(run.get("stages") or ()), *(stage.get("recipe", {}) for stage in stages)]
    own = {str(each.get("name")) for each in [*stages, *recipes]} | {"base"}
    found: list[Name] = []
    if "adapter_config.json" in files:
        found.append(("model", base_of(folder, read_json(files["adapter_config.json"]) or {})))
    for stage in stages:
        found.append(("model", (stage.get("base") or {}).get("name")))
        found += [("dataset", entry.get("dataset_name")) for entry in stage.get("data") or ()]
    for row in exam_rows(folder, [str(stage.get("name")) for stage in line_of(stages)]):
        found += [("model", row.get("stage")), ("dataset", row["data"].get("dataset_name"))]
    for recipe in recipes:
        found += names_of(recipe)
    named = [(kind, name) for kind, name in found if isinstance(name, str) and name]
    return [
        (kind, name)
        for kind, name in dict.fromkeys(named)
        if name not in own and not is_local(name) and is_id(name)
    ]


def names_of(recipe: Mapping[str, Any]) -> Iterator[Name]:
    """What one stage's recipe names, stages of the same run included."""
    yield from (("model", recipe.get(key)) for key in MODELS)
    yield from (("model", name) for name in recipe.get("of") or ())
    for reward in (*(recipe.get("reward_funcs") or ()), *(recipe.get("gold_funcs") or ())):
        name = str(reward.get("name") if isinstance(reward, Mapping) else reward)
        if name.startswith(ADAPTER):
            yield "model", name.removeprefix(ADAPTER)
    yield "dataset", recipe.get("dataset_name")
    for entry in recipe.get("datasets") or ():
        yield "dataset", entry.get("path")
    for task in recipe.get("tasks") or ():
        yield from (("dataset", task.get(key)) for key in ("dataset_name", "few_shot"))


def is_id(name: str) -> bool:
    """Whether the Hub could have something of this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return Path(name).suffix not in FILES and not Path(name).expanduser().exists()


def ask_about(
    names: Sequence[tuple[str, str]], deadline: float, tell: Callable[[str], None]
) -> tuple[dict[str, str], list[str]]:
    """The licences of what anyone may see, and the names of what not everyone may.

    Args:
        names: as of `names_in`.
        deadline: when no more is asked, by `time.monotonic`.
        tell: called with one line while something is tried again.

    Raises:
        HubError: if the Hub cannot be asked: then nobody knows what is private.
    """
    licences: dict[str, str] = {}
    hidden: list[str] = []
    api = HfApi()
    for kind, name in names:
        ask = api.model_info if kind == "model" else api.dataset_info

        def call(ask: Callable[..., Any] = ask, name: str = name) -> Any:
            left = max(deadline - time.monotonic(), 1)
            return ask(name, token=False, timeout=min(ASKED_FOR_S, left))

        try:
            found = again(call, deadline, tell)
        except RepositoryNotFoundError:
            hidden.append(name)
        except Exception as error:
            raise HubError(sentence(error, name)) from error
        else:
            licence = getattr(found.card_data, "license", None) or ""
            licences[name] = licence if isinstance(licence, str) else ", ".join(licence)
    return licences, hidden


def hiding(names: Sequence[str]) -> Callable[[str], str]:
    """Gives a text without the names of some repositories; longer names stay as they are."""
    whole = [rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)" for name in names]
    pattern = re.compile("|".join(whole) or r"(?!)")
    return lambda text: pattern.sub(WITHHELD, text)
