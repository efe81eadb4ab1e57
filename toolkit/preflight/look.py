"""A stage as the checks see it: its keys, and whatever of base and data is here already."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from toolkit.data.sources import Rows
from toolkit.models.load import loading, remote_code
from toolkit.preflight.findings import Findings
from toolkit.recipe import Recipe, StageRecipe
from toolkit.recipe.keys import TRAINING
from toolkit.stages.prepared import starting_point

FINISHED = "stage.json"


@dataclass(frozen=True)
class Options:
    """What the command line asks for besides.

    Attributes:
        gpu: a device that is not here, by name.
        price: of one hour of it.
        devices: how many of them.
        memory: bytes of the device, instead of what is measured.
        time: whether a few steps are timed.
        step: whether one real step is taken.
        shown: how many rows are shown.
    """

    gpu: str | None = None
    price: float | None = None
    devices: int = 1
    memory: int | None = None
    time: bool = False
    step: bool = False
    shown: int = 3


@dataclass
class Look:
    """One stage.

    Attributes:
        recipe: the whole recipe.
        stage: its keys.
        findings: takes what is found.
        options: what is asked for.
        config: the base's, of transformers; None if it is not here.
        tokenizer: with the template and tokens of training; None if it is not here.
        rows: as they were read; None if they are not here.
        lengths: tokens of each sequence, prompt, or longer side of a pair.
        trained: how many tokens of each of them have a label; of a pair, those of both answers.
        answers: of pairs, tokens of the longer answer of each.
        total: how many of them the whole data has, where these are a sample.
        needs: the memory that was estimated.
        libraries: bytes of this process with what its stages import, before anything was read.
        before: the stages before it as they were seen, by name.
    """

    recipe: Recipe
    stage: StageRecipe
    findings: Findings
    options: Options = field(default_factory=Options)
    config: Any = None
    tokenizer: PreTrainedTokenizerBase | None = None
    rows: Rows | None = None
    lengths: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    total: int = 0
    needs: Any = None
    libraries: int = 0
    before: Mapping[str, "Look"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def folder(self) -> Path:
        """Where it writes."""
        place = self.recipe.output_dir
        return place / self.name if self.recipe.is_pipeline else place

    @property
    def trains(self) -> bool:
        """Whether it trains a model, on rows that are known."""
        return self.stage.stage in TRAINING and self.stage.stage != "rejection"

    def earlier(self) -> Mapping[str, Path]:
        """The folders of the stages before it, by name."""
        found: dict[str, Path] = {}
        for other in self.recipe.stages:
            if other.name == self.name:
                break
            found[other.name] = self.recipe.output_dir / other.name
        return found

    def is_to_come(self, name: object) -> bool:
        """Whether a name is that of an earlier stage which is not finished."""
        folder = self.earlier().get(str(name))
        return folder is not None and not (folder / FINISHED).exists()

    def parent(self) -> str | None:
        """The adapter that it continues, if that is here."""
        start = self.stage.get("start_from")
        if start is None or self.is_to_come(start):
            return None
        return starting_point(self.stage, self.earlier())

    def inherited(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that a stage which is not finished will hand on to this one."""
        start = self.stage.get("start_from")
        if not self.is_to_come(start) or start not in self.before:
            return None
        return self.before[start].tokenizer or self.before[start].inherited()

    def ok(self, subject: str, line: str) -> None:
        """Note what is as it should be."""
        self.findings.add(subject, "ok", line, stage=self.name)

    def warn(self, subject: str, line: str, fix: str = "") -> None:
        """Note what may be meant."""
        self.findings.add(subject, "warning", line, fix=fix, stage=self.name)

    def error(self, subject: str, line: str, fix: str = "", code: int = 3) -> None:
        """Note what cannot work."""
        self.findings.add(subject, "error", line, fix=fix, stage=self.name, code=code)

    def note(self, subject: str, **numbers: Any) -> None:
        """Keep numbers."""
        self.findings.note(self.name, subject, **numbers)


def config_of(stage: StageRecipe) -> Any:
    """The base's configuration."""
    name = str(stage["model_name_or_path"])
    with loading(name):
        return AutoConfig.from_pretrained(name, **remote_code(stage))
