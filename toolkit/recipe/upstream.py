"""The fields of TRL's and transformers' dataclasses, read from the installed source.

The source is parsed, not imported: importing it would load torch, and a recipe is checked in a
fraction of a second without. What was read is kept until a file of it changes.
"""

import ast
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import ToolkitError
from toolkit.recipe.kept_schema import kept

REQUIRED: Any = dataclasses.MISSING

# class -> the package it is in, and the file in the package
CLASSES = {
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "RewardConfig": ("trl", "trainer/reward_config.py"),
    "DPOConfig": ("trl", "trainer/dpo_config.py"),
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "ModelConfig": ("trl", "trainer/model_config.py"),
    "ScriptArguments": ("trl", "scripts/utils.py"),
    "DatasetMixtureConfig": ("trl", "scripts/utils.py"),
    "DatasetConfig": ("trl", "scripts/utils.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}
ENUMS = {
    "SchedulerType": ("transformers", "trainer_utils.py"),
    "IntervalStrategy": ("transformers", "trainer_utils.py"),
    "SaveStrategy": ("transformers", "trainer_utils.py"),
    "HubStrategy": ("transformers", "trainer_utils.py"),
    "OptimizerNames": ("transformers", "training_args.py"),
    "DebugOption": ("transformers", "debug_utils.py"),
}
LOG_LEVELS = ("transformers", "utils/logging.py")


class Field(NamedTuple):
    """One field of an upstream dataclass."""

    name: str
    annotation: str
    default: Any
    help: str
    choices: tuple[Any, ...] | None


@cache
def fields_of(class_name: str) -> Mapping[str, Field]:
    """The fields of a dataclass of CLASSES, its bases' first, by name."""
    return {
        name: Field(name, kind, value[0] if value else REQUIRED, text, choices and tuple(choices))
        for name, kind, value, text, choices in _known()["fields"][class_name]
    }


@cache
def members_of(enum_name: str) -> tuple[str, ...]:
    """The values of an enum of ENUMS, in its order."""
    return tuple(_known()["members"][enum_name])


@cache
def _known() -> dict[str, Any]:
    """All of CLASSES and ENUMS, as JSON holds it."""
    places = dict.fromkeys([*CLASSES.values(), *ENUMS.values(), LOG_LEVELS])
    return kept([Path(__file__), *(_file(*place) for place in places)], _all)


def _all() -> dict[str, Any]:
    fields = {
        name: [
            [f.name, f.annotation, [] if f.default is REQUIRED else [f.default], f.help, f.choices]
            for f in _fields(name).values()
        ]
        for name in CLASSES
    }
    nodes = {name: _class(*place, name) for name, place in ENUMS.items()}
    members = {name: [*_constants(node).values()] for name, node in nodes.items()}
    return {"fields": fields, "members": members}


@cache
def _fields(class_name: str) -> Mapping[str, Field]:
    node = _class(*CLASSES[class_name], class_name)
    found: dict[str, Field] = {}
    for base in node.bases:
        found |= _fields(ast.unparse(base))
    constants = _constants(node)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            field = _field(statement.target.id, statement, constants)
            found[field.name] = field
    return found


@cache
def log_levels() -> tuple[str, ...]:
    """The values of transformers' `log_level`, which its dataclass computes."""
    for statement in _module(*LOG_LEVELS).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "log_levels":
            assert isinstance(statement.value, ast.Dict)
            return (*(ast.literal_eval(key) for key in statement.value.keys if key), "passive")
    raise AssertionError("transformers has no log_levels any more")


def _field(name: str, statement: ast.AnnAssign, constants: Mapping[str, Any]) -> Field:
    """A field from `name: type`, `name: type = value` or `name: type = field(…)`."""
    annotation = ast.unparse(statement.annotation)
    value = statement.value
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "field"):
        return Field(name, annotation, _value(value, constants), "", None)
    given = {word.arg: word.value for word in value.keywords}
    if "default_factory" in given:
        default = _made(given["default_factory"])
    else:
        default = _value(given.get("default"), constants)
    text, choices = "", None
    metadata = given.get("metadata")
    for key, item in zip(*_items(metadata), strict=True):
        if key == "help":
            text = " ".join(str(ast.literal_eval(item)).split())
        elif key == "choices":
            computed = isinstance(item, ast.Call)  # trainer_log_levels.keys()
            choices = log_levels() if computed else tuple(ast.literal_eval(item))
    return Field(name, annotation, default, text, choices)


def _items(metadata: ast.expr | None) -> tuple[list[Any], list[ast.expr]]:
    """Keys and value nodes of a dictionary display."""
    if not isinstance(metadata, ast.Dict):
        return [], []
    return [ast.literal_eval(key) for key in metadata.keys if key], metadata.values


def _value(node: ast.expr | None, constants: Mapping[str, Any]) -> Any:
    """The value of a default: a literal, or a name that the class assigns."""
    if node is None:
        return REQUIRED
    return constants[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def _made(factory: ast.expr) -> Any:
    """What `list`, `dict` or a lambda over a literal makes."""
    if isinstance(factory, ast.Lambda):
        return ast.literal_eval(factory.body)
    makers: dict[str, Callable[[], Any]] = {"list": list[Any], "dict": dict[Any, Any]}
    return makers[ast.unparse(factory)]()


def _constants(node: ast.ClassDef) -> dict[str, Any]:
    """Literals that a class body assigns to plain names; of several, the last.

    The last is right for `default_optim`, which transformers raises to a faster one where the
    torch installed is recent, as the versions supported here are.
    """
    found: dict[str, Any] = {}
    for statement in _statements(node.body):
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = statement.value.value
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A body's statements, and those under its `if`s."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from _statements(statement.body)


def _class(package: str, path: str, name: str) -> ast.ClassDef:
    for statement in _module(package, path).body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return statement
    raise ToolkitError(f"{package}/{path} has no class {name}: this version is not supported")


@cache
def _module(package: str, path: str) -> ast.Module:
    return ast.parse(_file(package, path).read_text(encoding="utf-8"))


def _file(package: str, path: str) -> Path:
    # Only the top package is looked up: find_spec("trl.trainer") would import trl.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ToolkitError(f"{package} is not installed: pip install toolkit")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise ToolkitError(f"{package} has no {path}: this version is not supported")
    return file
