"""The words of the command line as recipe keys."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from toolkit.errors import UsageError
from toolkit.recipe.keys import STAGES, keys_of
from toolkit.recipe.values import Given


class Change(NamedTuple):
    """A key given beside the file; `stage` is the name before the dot, if there is one."""

    stage: str | None
    key: str
    given: Given


def from_words(words: Sequence[str]) -> list[Change]:
    """`--key value`, `--key=value`, `--key` for true, `--no_key` for false, `--stage.key value`.

    Raises:
        UsageError: for a word that is no flag and no flag's value, or a flag given twice.
    """
    found: list[Change] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name or not name.isprintable():
            raise UsageError(f"expected --key value, found {word!r}")
        values = [text] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        change = _change(name, values)
        if any(change[:2] == other[:2] for other in found):
            raise UsageError(f"--{name} is given twice")
        found.append(change)
    return found


def _change(name: str, values: list[str]) -> Change:
    stage, dot, key = name.rpartition(".")
    key = key.replace("-", "_")
    where = f"--{stage}{dot}{key}"
    if not values:
        annotations = _annotations(key)
        if not annotations and key.startswith("no_"):
            positive = key.removeprefix("no_")
            if any("bool" in annotation for annotation in _annotations(positive)):
                return Change(stage or None, positive, Given(["false"], where, "flag"))
        # an unknown key is reported as such, with the nearest known, where the stage is known
        if annotations and key != "fsdp" and not any("bool" in a for a in annotations):
            raise UsageError(f"{where} needs a value")
        if key == "trust_remote_code":
            raise UsageError(f"{where} needs a value: REPO@SHA, the 40-digit revision to trust")
    return Change(stage or None, key, Given(values, where, "flag"))


def _annotations(key: str) -> set[str]:
    """The types that a key has in the stages that know it."""
    return {keys_of(stage)[key].annotation for stage in STAGES if key in keys_of(stage)}


def from_keywords(keywords: Mapping[str, Any]) -> list[Change]:
    """Python keywords; `**{"stage_name.key": value}` speaks to one stage."""
    found: list[Change] = []
    for name, value in keywords.items():
        stage, _, key = name.rpartition(".")
        found.append(Change(stage or None, key, Given(value, "keyword", "keyword")))
    return found
