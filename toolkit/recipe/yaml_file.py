"""Reading a recipe's YAML: plain data with the line of every key; `2e-4` is a number."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import RecipeError
from toolkit.recipe.ranges import shown

MAX_BYTES = 1 << 20
MAX_VALUES = 50_000  # aliases multiply: a few lines can stand for billions of values
MAX_DEPTH = 30

NULL = {"", "~", "null", "Null", "NULL"}
BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INT = re.compile(r"[-+]?[0-9][0-9_]{0,400}|0x[0-9a-fA-F]{1,100}|0o[0-7]{1,100}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}

KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """A mapping read from a file.

    Attributes:
        name: how messages name the file.
        data: the mapping.
        lines: the line of each key and list item, by its path in the data.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])

    def where(self, *path: str | int) -> str:
        """`file:line` of a key or item."""
        line = self.lines.get(path)
        return self.name if line is None else f"{self.name}:{line}"


def scalar(text: str) -> Any:
    """What a plain word means in YAML 1.2: null, true, false, a number, else itself."""
    if text in NULL:
        return None
    if text in BOOL:
        return BOOL[text]
    if INT.fullmatch(text):
        base = {"0x": 16, "0o": 8}.get(text[:2], 10)
        return int(text.replace("_", ""), base)
    if special := SPECIAL.fullmatch(text):
        return float(f"{special[1] or ''}inf") if special[2] else float("nan")
    if FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text


def parse_words(text: str) -> Any:
    """What a word on the command line means: YAML, or itself where that is not YAML."""
    if not text.startswith(("[", "{", '"', "'")):
        return scalar(text) if text else ""
    try:
        return _Builder(Document("the command line")).parse(text)
    except RecipeError:
        return text


def read(path: str | Path) -> Document:
    """Read a recipe file.

    Raises:
        RecipeError: if it cannot be read, is too large, or is not a YAML mapping; with the line.
    """
    document = Document(str(path))
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise RecipeError(f"{path}: a recipe has at most {MAX_BYTES} bytes, this has {size}")
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{path}: cannot be read: {reason}") from error
    data = _Builder(document).parse(text)
    if data is None:
        raise RecipeError(f"{path}: the recipe is empty; expected `stage: sft` and its keys")
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a mapping of keys to values at the top")
    document.data = data
    return document


class _Builder:
    """Builds plain data from YAML nodes; nothing but mappings, lists and plain values."""

    def __init__(self, document: Document):
        self.document = document
        self.values = 0

    def parse(self, text: str) -> Any:
        name = self.document.name
        try:
            compose: Any = getattr(yaml, "compose")  # noqa: B009 - untyped upstream
            root: yaml.Node | None = compose(text, Loader=yaml.BaseLoader)
            return None if root is None else self.build(root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            problem = " ".join(str(error.problem or error.context).split())
            raise RecipeError(f"{name}{line}: not valid YAML: {problem}") from error
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise RecipeError(f"{name}: not valid YAML: {problem}") from error
        except RecursionError as error:
            raise RecipeError(f"{name}: nested too deeply") from error

    def count(self, node: yaml.Node, path: KeyPath) -> None:
        self.values += 1
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise self.refuse(node, "too deep, or too many values once its aliases are expanded")

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count(node, path)
        if node.tag not in PLAIN_TAGS:
            raise self.refuse(
                node, f"the tag {shown(node.tag)} is not allowed; write a plain value"
            )
        if isinstance(node, yaml.ScalarNode):
            return scalar(node.value) if node.style is None else node.value
        if isinstance(node, yaml.SequenceNode):
            items: list[Any] = []
            for index, item in enumerate(node.value):
                self.document.lines[(*path, index)] = item.start_mark.line + 1
                items.append(self.build(item, (*path, index)))
            return items
        assert isinstance(node, yaml.MappingNode)
        return self.mapping(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refuse(key_node, "a key must be a word")
            line = key_node.start_mark.line + 1
            if key_node.value == "<<":
                merged |= self.merged(value_node, path)
                continue
            # as upstream, keys of nested mappings may be numbers: `max_memory: {0: 20GiB}`
            key = scalar(key_node.value) if path and key_node.style is None else key_node.value
            if key in found:
                first = self.document.lines.get((*path, key))
                raise self.refuse(key_node, f"{shown(key)} is written twice, first in line {first}")
            self.document.lines[(*path, key)] = line
            found[key] = self.build(value_node, (*path, key))
        return merged | found

    def merged(self, node: yaml.Node, path: KeyPath) -> dict[Any, Any]:
        """The mappings that `<<` merges; the first that has a key gives it."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[Any, Any] = {}
        for part in reversed(parts):
            if not isinstance(part, yaml.MappingNode):
                raise self.refuse(node, "<< takes a mapping")
            self.count(part, path)
            found |= self.mapping(part, (*path, "<<"))
            for key in found:
                line = self.document.lines.get((*path, "<<", key))
                if line is not None:
                    self.document.lines[(*path, key)] = line
        return found

    def refuse(self, node: yaml.Node, reason: str) -> RecipeError:
        return RecipeError(f"{self.document.name}:{node.start_mark.line + 1}: {reason}")
