"""A recipe as it is handed to the stages."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from toolkit.recipe.defaults import defaults_of
from toolkit.recipe.keys import keys_of


@dataclass(frozen=True)
class StageRecipe:
    """One stage's keys.

    Attributes:
        stage: what is done, a word of STAGES.
        name: the stage's own name.
        written: checked values that the recipe, the flags or the Python call gave.
        where: the place of each of them: `recipes/x.yaml:12`, `--learning_rate`, `keyword …`.
        allow_change: what may differ from the run that is resumed; asked for with the run, no key.
        fresh_optimizer: whether it is resumed with a new optimizer; likewise.
    """

    stage: str
    name: str
    written: Mapping[str, Any]
    where: Mapping[str, str]
    allow_change: tuple[str, ...] = ()
    fresh_optimizer: bool = False

    def __getitem__(self, key: str) -> Any:
        if key in ("stage", "name"):
            return self.stage if key == "stage" else self.name
        known = keys_of(self.stage)[key]
        if key in self.written:
            return self.written[key]
        return copy.deepcopy(defaults_of(self.stage, self.written).get(key, known.default))

    def get(self, key: str, default: Any = None) -> Any:
        """As `recipe[key]`, with a default where the stage does not know the key."""
        return self[key] if key in keys_of(self.stage) else default

    def is_written(self, key: str) -> bool:
        """Whether the user gave the key, in whatever way."""
        return key in self.written

    def arguments(self, owner: str) -> dict[str, Any]:
        """What an upstream class is to be called with: what was written, and our own defaults.

        Args:
            owner: the class's name, for example "SFTConfig".
        """
        known = keys_of(self.stage)
        values = {**defaults_of(self.stage, self.written), **self.written}
        return {k: copy.deepcopy(v) for k, v in values.items() if known[k].owner == owner}

    def differing_defaults(self) -> dict[str, tuple[Any, Any]]:
        """Our defaults in force where upstream's differ: key -> (ours, upstream's)."""
        known = keys_of(self.stage)
        ours = defaults_of(self.stage, self.written)
        return {key: (value, known[key].default) for key, value in ours.items()}

    def without_effect(self) -> list[str]:
        """What was written of an adapter where there is none."""
        if self.get("use_peft", True):
            return []
        of_an_adapter = ("use_rslora", "use_dora")
        return [k for k in self.written if k.startswith("lora_") or k in of_an_adapter]

    def resolved(self) -> dict[str, Any]:
        """Plain data for YAML: the stage, its name, what was written, our own defaults."""
        values = {**self.written, **defaults_of(self.stage, self.written)}
        return {"stage": self.stage, "name": self.name} | plain(values)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        path: its file, if there is one.
        output_dir: the run's folder; a pipeline's stages are in folders below it, by name.
        stages: in order.
        is_pipeline: whether it was written with `stages:`.
    """

    path: Path | None
    output_dir: Path
    stages: tuple[StageRecipe, ...]
    is_pipeline: bool

    def resolved(self) -> dict[str, Any]:
        """Plain data for YAML, which gives the same recipe when it is read again."""
        where = {"output_dir": self.output_dir.as_posix()}
        if not self.is_pipeline:
            return self.stages[0].resolved() | where
        return {**where, "stages": [stage.resolved() for stage in self.stages]}


def plain(value: Any) -> Any:
    """The value with everything that YAML has no word for, such as a torch dtype, as text."""
    if isinstance(value, Mapping):
        mapping = cast(Mapping[Any, Any], value)
        return {plain(key): plain(item) for key, item in mapping.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast(list[Any], value)]
    return value if value is None or type(value) in (str, int, float, bool) else str(value)
