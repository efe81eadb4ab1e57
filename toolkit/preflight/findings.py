"""What a check has found: one line, how bad it is, and what to do about it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from huggingface_hub import constants

from toolkit.errors import HubError, ToolkitError
from toolkit.models.load import hub_answers

OK, WARNING, ERROR = "ok", "warning", "error"
SUBJECTS = (
    "keys", "places", "data", "template", "rewards", "memory", "schedule", "price", "step",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: one of SUBJECTS.
        level: "ok", "warning" or "error".
        line: what was found.
        fix: what to do; empty if nothing.
        stage: whose it is; empty if it is the whole recipe's.
        exit_code: of an error, as of `toolkit.errors`.
    """

    subject: str
    level: str
    line: str
    fix: str = ""
    stage: str = ""
    exit_code: int = 0


@dataclass
class Findings:
    """All findings, in order, and the numbers behind them.

    Attributes:
        recipe: the recipe's path.
        found: the findings.
        facts: stage → subject → plain numbers, as `--json` gives them.
        samples: stage → lines as a person reads them, with the trained tokens coloured.
    """

    recipe: str = ""
    found: list[Finding] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)

    def add(
        self, subject: str, level: str, line: str, *, fix: str = "", stage: str = "", code: int = 3
    ) -> None:
        """Note a finding, once for a stage; `code` counts of an error alone."""
        if any(one.line == line and one.stage == stage for one in self.found):
            return
        exit_code = code if level == ERROR else 0
        self.found.append(Finding(subject, level, line, fix, stage, exit_code))

    def note(self, stage: str, subject: str, **numbers: Any) -> None:
        """Keep numbers for `--json` and for what is drawn."""
        self.facts.setdefault(stage, {}).setdefault(subject, {}).update(numbers)

    @property
    def exit_code(self) -> int:
        """That of the first error; 0 without one."""
        return next((one.exit_code for one in self.found if one.level == ERROR), 0)

    @contextmanager
    def catching(self, subject: str, stage: str) -> Iterator[None]:
        """Turn an error of the block into a finding; what the Hub was not asked is unchecked."""
        try:
            yield
        except HubError as error:
            if hub_answers(constants.ENDPOINT):
                self.add(subject, ERROR, str(error), stage=stage, code=error.exit_code)
            else:
                self.add(
                    subject, WARNING, f"unchecked, the Hub is out of reach: {error}", stage=stage
                )
        except ToolkitError as error:
            self.add(subject, ERROR, str(error), stage=stage, code=error.exit_code)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        counts = {level: self.count(level) for level in (ERROR, WARNING, OK)}
        return {
            "recipe": self.recipe,
            "exit_code": self.exit_code,
            "counts": counts,
            "findings": [asdict(one) for one in self.found],
            "stages": self.facts,
        }

    def count(self, level: str) -> int:
        """How many findings are of a level."""
        return sum(one.level == level for one in self.found)

    def of(self, stage: str) -> Sequence[Finding]:
        """A stage's findings."""
        return [one for one in self.found if one.stage == stage]
