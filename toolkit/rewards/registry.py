"""Rewards by name, and a user's own by `file.py:function` or `package.module:function`."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, cast

from toolkit.errors import RecipeError, ToolkitError
from toolkit.recipe.keys import OURS, Key, did_you_mean
from toolkit.recipe.upstream import REQUIRED
from toolkit.recipe.values import Given, convert
from toolkit.rewards.checked import Reward

REWARDS: Mapping[str, str] = MappingProxyType(
    {
        "answer": "toolkit.rewards.gold_answer:Answer",
        "choice": "toolkit.rewards.choices:Choice",
        "code": "toolkit.rewards.code:Code",
        "format": "toolkit.rewards.format:Format",
        "language": "toolkit.rewards.language:Language",
        "length": "toolkit.rewards.length:Length",
        "repetition": "toolkit.rewards.repetition:Repetition",
    }
)
"""Each reward's class, loaded when it is asked for."""

# The names of TRL 1.16's scripts/grpo.py, so that its recipes run
OF_TRL: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "accuracy_reward": ("trl.rewards:accuracy_reward", {}),
        "reasoning_accuracy_reward": ("trl.rewards:reasoning_accuracy_reward", {}),
        "think_format_reward": ("trl.rewards:think_format_reward", {}),
        "get_soft_overlong_punishment": (
            REWARDS["length"],
            {"max_completion_len": 1280, "soft_punish_cache": 256},
        ),
    }
)


def names() -> list[str]:
    """The rewards that `get` knows by name."""
    return sorted(REWARDS)


def get(name: str, **parameters: Any) -> Reward:
    """The reward of a name, with parameters.

    A `file.py:function` or `package.module:function` is the user's own code, named in the user's
    own recipe: it is imported and runs with the user's rights. Nothing that a data set, a model or
    a completion brings is ever run this way; see `toolkit.rewards.sandbox`.

    Args:
        name: a name of `names()`, "file.py:function", "package.module:function", or TRL's dotted
            "package.module.function". A class, or a function that takes no `completions`, is
            called with the parameters and gives the reward.
        **parameters: the reward's own.

    Raises:
        RecipeError: if there is no such reward, if it cannot be imported, or for a parameter that
            it does not know or that has the wrong type.
    """
    if name in REWARDS:
        return _built(imported(REWARDS[name]), name, parameters)
    if name in OF_TRL:
        place, defaults = OF_TRL[name]
        return _built(imported(place), name, {**defaults, **parameters})
    if name.startswith("adapter:"):
        raise RecipeError(f"{name}: a reward adapter is loaded by the stage that trains against it")
    if name.endswith(".py") or not (":" in name or "." in name):
        raise RecipeError(
            f"unknown reward {name!r}{did_you_mean(name, REWARDS)}; expected {', '.join(names())}, "
            f"file.py:function, package.module:function or adapter:NAME"
        )
    return _built(imported(name), name, parameters)


def load_reward(entry: str | Mapping[str, Any] | Reward) -> Reward:
    """The reward that an entry of `reward_funcs` names.

    Args:
        entry: a name as for `get`; a mapping of `name` and the parameters, as
            `{name: format, tags: [think, answer]}`; or a callable, which is returned as it is.

    Raises:
        RecipeError: see `get`.
    """
    if isinstance(entry, str):
        return get(entry)
    if not isinstance(entry, Mapping):
        if callable(entry):
            return entry
        raise RecipeError(
            f"reward_funcs: expected a name, a mapping or a function, found {entry!r}"
        )
    parameters = dict(entry)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        known = ", ".join(map(str, entry)) or "nothing"
        raise RecipeError(f"reward_funcs: a mapping needs `name`, a text; found {known}")
    for key in parameters:
        if not isinstance(key, str):
            raise RecipeError(f"reward {name}: a parameter's name must be text, found {key!r}")
    return get(name, **parameters)


def _built(found: Any, name: str, parameters: dict[str, Any]) -> Reward:
    """The reward itself with its parameters, or what a class or a maker of rewards gives."""
    try:
        known = inspect.signature(found).parameters
    except (TypeError, ValueError):  # some functions in C
        known = {}
    # the **columns of a reward take everything, so only what it names itself can be meant
    if unknown := [key for key in parameters if key not in known]:
        raise RecipeError(
            f"reward {name}: unknown parameter {unknown[0]!r}{did_you_mean(unknown[0], known)}; "
            f"its parameters: {_listed(known)}"
        )
    takes_any = any(each.kind is each.VAR_KEYWORD for each in known.values())
    if not inspect.isclass(found) and ("completions" in known or takes_any):
        return partial(found, **parameters) if parameters else found
    if str(getattr(found, "__module__", "")).startswith("toolkit."):
        parameters = {key: _converted(known[key], value, name) for key, value in parameters.items()}
    try:
        reward = found(**parameters)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"reward {name}: {error}; its parameters: {_listed(known)}") from error
    if not callable(reward):
        raise RecipeError(
            f"reward {name}: expected f(prompts, completions, **columns), or what makes one, found "
            f"a function of: {_listed(known)}"
        )
    return cast(Reward, reward)


def _listed(known: Mapping[str, inspect.Parameter]) -> str:
    return ", ".join(str(each) for each in known.values()).replace("typing.", "") or "none"


def _converted(parameter: inspect.Parameter, value: Any, name: str) -> Any:
    """A parameter's value in its type, by the rules of a recipe's keys."""
    annotation = inspect.formatannotation(parameter.annotation).replace("typing.", "")
    default = REQUIRED if parameter.default is parameter.empty else parameter.default
    key = Key(parameter.name, annotation, default, "", None, OURS)
    return convert(key, Given(value, f"reward {name}", "keyword"))


def imported(name: str, what: str = "reward") -> Any:
    """What stands under a name in a module or a file.

    Args:
        name: "file.py:function", "package.module:function" or "package.module.function".
        what: how messages call it.

    Raises:
        RecipeError: if there is no such module, or nothing callable of that name in it.
    """
    place, _, attribute = name.rpartition(":" if ":" in name else ".")
    module = _file(Path(place)) if place.endswith(".py") else _module(place, name)
    found = getattr(module, attribute, None)
    if not callable(found):
        there = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        near = did_you_mean(attribute, there)
        raise RecipeError(
            f"{what} {name}: {place} has no function {attribute!r}{near}; found "
            f"{', '.join(there[:20]) or 'none'}"
        )
    return found


def _module(place: str, name: str) -> ModuleType:
    with _on_path(Path.cwd()), _failures(name):
        return importlib.import_module(place)


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"reward {path}: there is no such file in {Path.cwd()}")
    path = path.resolve()
    # one module per state of a file: two functions of it share it, an edited one is read again
    state = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode())
    name = f"{path.stem}_{state.hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _on_path(path.parent), _failures(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported, as in a script that stands there."""
    sys.path.insert(0, os.fspath(folder))
    try:
        yield
    finally:
        sys.path.remove(os.fspath(folder))


@contextmanager
def _failures(name: str) -> Iterator[None]:
    try:
        yield
    except ToolkitError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = (
            f" ({Path(last.filename).name}:{last.lineno})"
            if "importlib" not in last.filename
            else ""
        )
        words = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"reward {name}: importing it raised {type(error).__name__}: {words}{where}"
        ) from error
