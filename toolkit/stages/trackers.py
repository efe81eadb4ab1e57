"""What trackers (`report_to`) are shown: metrics and settings, not where things are and whose.

Transformers 5.23 hands each of them all arguments, the model's config and PEFT's: with the paths and
names of base, adapter and folders in them.
"""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.integrations import get_reporting_integration_callbacks

from toolkit.artifacts.hub_names import ASKED_FOR_S, WITHHELD
from toolkit.artifacts.outgoing import is_local, last_part, without_paths
from toolkit.errors import RecipeError
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import ADAPTER
from toolkit.recipe.schema import plain

SETTING_UP = ("on_train_begin", "on_log", "on_evaluate", "on_predict")
"""The events at which a tracker may read arguments and configs: it sets itself up at the first."""
WANDB = {
    "WANDB_CONSOLE": "off",  # the lines of the terminal, which name folders
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB__DISABLE_META": "true",  # the command line, the program's path, host and user
}
SENDS_FOLDERS = {
    "wandb": "WANDB_LOG_MODEL", "mlflow": "HF_MLFLOW_LOG_ARTIFACTS",
    "clearml": "CLEARML_LOG_MODEL", "comet_ml": "COMET_LOG_ASSETS",
    "dvclive": "HF_DVCLIVE_LOG_MODEL",
}  # fmt: skip
"""Variables by which a tracker sends the folder of a model as it is."""


def keep_private(trainer: Trainer, recipe: StageRecipe) -> None:
    """Hide local paths and names of private repositories from a trainer's trackers.

    Raises:
        RecipeError: if a variable asks a tracker to send whole folders.
    """
    told = list(trainer.args.report_to or ())
    if not told or recipe["share_samples"]:
        return
    for name in told:
        variable = SENDS_FOLDERS.get(name, "")
        if os.environ.get(variable, "false").lower() not in ("false", "0", ""):
            raise RecipeError(
                f"{variable} asks {name} to send the model's folder as it is, with local paths; "
                "unset it, or write share_samples: true"
            )
    if "wandb" in told:
        for variable, value in WANDB.items():
            os.environ.setdefault(variable, value)
    rename = renaming(recipe, str(trainer.args.output_dir))
    kinds = tuple(get_reporting_integration_callbacks(told))
    callbacks: list[Any] = trainer.callback_handler.callbacks
    callbacks[:] = [Discreet(c, rename) if isinstance(c, kinds) else c for c in callbacks]


def renaming(recipe: StageRecipe, output_dir: str) -> Callable[[str], str]:
    """Gives a text with the last part of local paths, and without repositories that not all may see."""
    words = {word.removeprefix(ADAPTER) for word in texts(plain(recipe.written))} | {output_dir}
    shown = {word: last_part(word) for word in words if is_local(word)}
    models = [recipe.get(key) for key in ("model_name_or_path", "start_from", "value_start_from")]
    judges = [plain(recipe.get("reward_funcs")), plain(recipe.get("gold_funcs"))]
    models += [word for word in texts(judges) if word.startswith(ADAPTER)]
    for word in {str(name).removeprefix(ADAPTER) for name in models if name} - shown.keys():
        if "/" in word and not is_public(word):
            shown[word] = WITHHELD

    def rename(text: str) -> str:
        for word in sorted(shown, key=len, reverse=True):
            text = text.replace(word, shown[word])
        return text

    return rename


def texts(value: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        yield value
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list):
        for part in parts:
            yield from texts(part)


def is_public(name: str) -> bool:
    """Whether everybody can see a model on the Hub; one that cannot be asked about counts as not."""
    try:
        HfApi().model_info(name, token=False, timeout=ASKED_FOR_S)
    except Exception:  # whatever is wrong, nobody has said that it is public
        return False
    return True


class Discreet:
    """A tracker that is shown what others may see, and is else as it was.

    Args:
        tracker: transformers' callback.
        rename: of `renaming`.
    """

    def __init__(self, tracker: Any, rename: Callable[[str], str]):
        self.tracker, self.rename = tracker, rename

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.tracker, name)
        return self.discreetly(found) if name in SETTING_UP else found

    def discreetly(self, event: Callable[..., Any]) -> Callable[..., Any]:
        """An event of the tracker, with other arguments, model and names of metrics."""

        def called(args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> Any:
            for key in ("logs", "metrics"):
                if given.get(key) is not None:
                    given[key] = {self.rename(name): v for name, v in given[key].items()}
            with names_hidden(model, self.rename):
                return event(Shown(args, self.rename), state, control, model=model, **given)

        return called


class Shown:
    """A trainer's arguments, which write themselves down without local paths.

    Args:
        args: the arguments.
        rename: of `renaming`.
    """

    def __init__(self, args: Any, rename: Callable[[str], str]):
        self.args, self.rename = args, rename

    def __getattr__(self, name: str) -> Any:
        return getattr(self.args, name)

    def to_dict(self) -> dict[str, Any]:
        """As of TrainingArguments."""
        return without_paths(self.args.to_dict(), self.rename)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """As of TrainingArguments."""
        return without_paths(self.args.to_sanitized_dict(), self.rename)

    def to_json_string(self) -> str:
        """As of TrainingArguments."""
        return json.dumps(self.to_dict(), indent=2)


@contextmanager
def names_hidden(model: Any, rename: Callable[[str], str]) -> Iterator[None]:
    """Inside the block, a model's configs do not say where it came from."""
    config: Any = getattr(model, "config", None)
    adapters: Any = getattr(model, "peft_config", None)
    name = getattr(config, "_name_or_path", None)
    try:
        if name:
            config._name_or_path = shown_name(name, rename)
        if adapters:
            model.peft_config = {key: hidden(value, rename) for key, value in adapters.items()}
        yield
    finally:
        if name:
            config._name_or_path = name
        if adapters:
            model.peft_config = adapters


def hidden(adapter: Any, rename: Callable[[str], str]) -> Any:
    """A copy of an adapter's config that does not name its base."""
    changed = copy.copy(adapter)
    changed.base_model_name_or_path = shown_name(str(adapter.base_model_name_or_path), rename)
    return changed


def shown_name(name: str, rename: Callable[[str], str]) -> str:
    """A model's name as others may see it."""
    return last_part(name) if is_local(name) else rename(name)
