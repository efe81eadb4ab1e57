"""One value: its type, by upstream's annotation, and its range."""

import ast
import dataclasses
import os
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, cast

from toolkit.errors import RecipeError
from toolkit.recipe.keys import Key, did_you_mean
from toolkit.recipe.places import check_texts
from toolkit.recipe.ranges import check_range, shown
from toolkit.recipe.upstream import ENUMS, REQUIRED, fields_of
from toolkit.recipe.yaml_file import parse_words, scalar

# What upstream takes beyond its annotations, by its documentation or its __post_init__.
ALSO_TAKES = {
    "lora_target_modules": "str",  # "all-linear", or a pattern
    "fsdp": "bool",
    "scale_rewards": "bool",
    "test_split_size": "int",
}
# Where upstream has `dict | str`, a string is JSON; only for these it may be a JSON file's path.
JSON_FILES = {"deepspeed", "fsdp_config", "accelerator_config"}
YES_NO = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}

NO: Any = object()  # the value does not fit


@dataclasses.dataclass(frozen=True)
class Given:
    """A value as it was given.

    Attributes:
        value: from a file or Python, the value; from the command line, the list of its words.
        where: how messages name the place.
        origin: "file", "flag" or "keyword".
    """

    value: Any
    where: str
    origin: str


def convert(key: Key, given: Given) -> Any:
    """The value of a key, checked and in the type that upstream wants.

    Raises:
        RecipeError: if the type, the choice or the range is wrong.
    """
    if given.origin == "flag":
        value = _from_words(key, given.value)
        found = shown(given.value[0] if len(given.value) == 1 else given.value)
    else:
        value = _fit_leniently(key, _plain(given.value))
        found = shown(given.value)
    if value is NO:
        hint = _hint(key, given.value)
        raise RecipeError(f"{given.where}: {key.name} must be {expected(key)}, found {found}{hint}")
    _check_choice(key, value, given.where)
    check_texts(key.name, value, given.where)
    check_range(key.name, value, given.where)
    return value


def _hint(key: Key, value: Any) -> str:
    """What to write instead, where that is plain."""
    kinds = _kinds(key)
    if isinstance(value, float) and "int" in kinds and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, int | float) and not isinstance(value, bool) and "str" in kinds:
        # how a number with a point or an exponent was written is not known any more
        return (
            "; write it in quotes" if isinstance(value, float) else f"; write '{value}' in quotes"
        )
    return ""


def _plain(value: Any) -> Any:
    """A Python object as the plain value that it stands for."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast(list[Any], value)]
    return value


def _from_words(key: Key, words: list[str]) -> Any:
    """The value of a flag: none of its words is `true`, several are a list."""
    if not words:
        return _fit(key, True)
    if len(words) > 1:
        return _fit_leniently(key, [parse_words(word) for word in words])
    parsed = _fit_leniently(key, parse_words(words[0]))
    return _fit_leniently(key, words[0]) if parsed is NO else parsed


def _fit_leniently(key: Key, value: Any) -> Any:
    """The value if it fits; else what a quoted word means, or a list of the one value."""
    fitted = _fit(key, value)
    if fitted is NO and isinstance(value, str):
        meant: Any = YES_NO.get(value.lower(), scalar(value))
        if isinstance(meant, str) and meant.startswith(("{", "[")):
            meant = parse_words(meant)
        fitted = NO if isinstance(meant, str) else _fit(key, meant)
    if fitted is NO and isinstance(value, str | int | float):
        fitted = _fit(key, [value])
    return fitted


def _fit(key: Key, value: Any) -> Any:
    """The value in the key's type, or NO."""
    if isinstance(value, str) and _takes_json(key):
        if value.startswith("{"):
            value = parse_words(value)
        elif key.name not in JSON_FILES:
            return NO
    for kind in _kinds(key):
        fitted = _match(kind, value)
        if fitted is not NO:
            return fitted
    return NO


def _takes_json(key: Key) -> bool:
    kinds = _kinds(key)
    return "str" in kinds and any(kind.startswith("dict") for kind in kinds)


@cache
def _alternatives(annotation: str) -> tuple[str, ...]:
    """The members of a union, as text."""
    node = ast.parse(annotation, mode="eval").body
    found: list[str] = []
    while isinstance(node, ast.BinOp):
        found.append(ast.unparse(node.right))
        node = node.left
    return (ast.unparse(node), *reversed(found))


def _kinds(key: Key) -> tuple[str, ...]:
    also = ALSO_TAKES.get(key.name)
    return _alternatives(key.annotation) + ((also,) if also else ())


def _match(kind: str, value: Any) -> Any:
    """The value if it is of one kind, else NO."""
    if kind in ENUMS:
        kind = "str"
    if kind == "Any":
        return value
    if kind == "None":
        return None if value is None else NO
    if kind == "float":
        # a whole number stays one: upstream counts steps with 10 and takes shares with 0.1
        return value if isinstance(value, int | float) and not isinstance(value, bool) else NO
    if kind == "int":
        return value if isinstance(value, int) and not isinstance(value, bool) else NO
    if kind in ("bool", "str"):
        return value if isinstance(value, {"bool": bool, "str": str}[kind]) else NO
    outer, _, inner = kind.removesuffix("]").partition("[")
    if outer == "list" and isinstance(value, list):
        items = [_match_any(inner, item) for item in cast(list[Any], value)]
        return NO if any(item is NO for item in items) else items
    if outer == "dict" and isinstance(value, Mapping):
        mapping = cast(Mapping[Any, Any], value)
        of_keys, _, of_values = inner.partition(", ")
        if of_keys == "str" and not all(isinstance(name, str) for name in mapping):
            return NO
        values = [_match_any(of_values or "Any", item) for item in mapping.values()]
        return NO if any(item is NO for item in values) else dict(zip(mapping, values, strict=True))
    if outer == "Literal":
        return value if value is ast.literal_eval(inner) else NO
    if kind == "DatasetConfig":
        return dict(cast(Mapping[Any, Any], value)) if isinstance(value, Mapping) else NO
    return NO  # an object that only Python could make


def _match_any(annotation: str, value: Any) -> Any:
    if annotation not in ("", "Any"):
        for kind in _alternatives(annotation):
            fitted = _match(kind, value)
            if fitted is not NO:
                return fitted
        return NO
    return value


WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "None": "null",
}


def expected(key: Key) -> str:
    """A key's type in words."""
    found: list[str] = []
    for kind in _kinds(key):
        outer, _, inner = kind.removesuffix("]").partition("[")
        if kind in WORDS or kind in ENUMS:
            found.append(WORDS.get(kind, "text"))
        elif outer == "list":
            found.append(f"a list of {_plural(inner)}")
        elif outer == "dict":
            found.append("a mapping")
    found = list(dict.fromkeys(found))
    if _takes_json(key) and key.name not in JSON_FILES:
        found.remove("text")
    return " or ".join(sorted(found, key=lambda word: word == "null")) or "null"


def _plural(inner: str) -> str:
    words = {"str": "words", "float": "numbers", "int": "whole numbers"}
    return words.get(inner, "mappings" if "Config" in inner or "dict" in inner else "values")


def _check_choice(key: Key, value: Any, where: str) -> None:
    if key.choices is None or value is None or value in key.choices:
        return
    choices = [str(choice) for choice in key.choices]
    near = did_you_mean(str(value), choices)
    allowed = "one that it knows" if near and len(choices) > 20 else f"one of {', '.join(choices)}"
    raise RecipeError(f"{where}: {key.name} must be {allowed}, found {shown(value)}{near}")


def check_datasets(
    entries: list[dict[Any, Any]], where: Callable[[int, str | None], str]
) -> list[dict[str, Any]]:
    """The entries of `datasets`, each with the fields of TRL's DatasetConfig.

    Args:
        entries: one mapping per data set.
        where: the place of a field, by the entry's index and the field's name.

    Raises:
        RecipeError: for a field that is unknown, missing or of the wrong type.
    """
    fields = fields_of("DatasetConfig")
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        for name in entry:
            if name not in fields:
                near = did_you_mean(str(name), fields, f"; known: {', '.join(fields)}")
                raise RecipeError(
                    f"{where(index, str(name))}: unknown field {shown(name)} of datasets entry "
                    f"{index + 1}{near}"
                )
        for name, field in fields.items():
            if field.default is REQUIRED and not entry.get(name):
                raise RecipeError(
                    f"{where(index, None)}: datasets entry {index + 1} needs {name!r}"
                )
        known = {name: Key(**fields[name]._asdict(), owner="DatasetConfig") for name in entry}
        found.append(
            {
                name: convert(known[name], Given(item, where(index, name), "keyword"))
                for name, item in entry.items()
            }
        )
    return found
