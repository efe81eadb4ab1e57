"""`toolkit verify DIR`: the proof of an artefact, repeated; of an adapter by others, what can be known.

Every check answers with one line, or raises a ToolkitError whose line names the tensor or the key.
Nothing that an artefact says of itself makes code run: no code of a repository is trusted here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.artifacts import proof_file
from toolkit.errors import RecipeError, ToolkitError, TrainingError
from toolkit.models.load import check_model_path
from toolkit.verification.artefact import Artefact, artefact_in, holds_model, is_stage
from toolkit.verification.files import (
    adapter_does_something,
    files_as_written,
    head_present,
    template_as_trained,
    weights_finite,
)
from toolkit.verification.loaded import base_matches, numbers_again

CHECKED: dict[str, Callable[[Artefact], str | None]] = {
    "files": files_as_written,
    "weights": weights_finite,
    "effect": adapter_does_something,
    "head": head_present,
    "template": template_as_trained,
    "base": base_matches,
    "numbers": numbers_again,
}
"""The checks in their order, each with the word that stands for it in the terminal."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        directory: what was checked.
        check: the check's name.
        passed: whether all is well.
        said: one line: what was found.
    """

    directory: Path
    check: str
    passed: bool
    said: str

    def line(self) -> str:
        """For the terminal."""
        return f"  {'ok' if self.passed else 'FAILED':<8}{self.check:<10}{self.said}"


def verify(directory: str | Path) -> Iterator[Finding]:
    """Check an artefact, or every stage of a run, one finding after the other.

    Args:
        directory: the folder of an adapter, of a whole model, or of a run of several stages.

    Raises:
        RecipeError: if it holds none.
    """
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise RecipeError(f"{directory}: no such folder ({folder.absolute()}); check the path")
    found = [folder] if holds_model(folder) else []
    found = found or sorted(path for path in folder.iterdir() if path.is_dir() if is_stage(path))
    if not found:
        check_model_path(str(folder))
    for place in found:
        yield from verify_one(place)


def verify_one(directory: Path) -> Iterator[Finding]:
    """Check one artefact, and note in its proof.json whether it is what was trained."""
    artefact = artefact_in(directory)
    failures = []
    for name, check in CHECKED.items():
        try:
            said = check(artefact)
        except ToolkitError as error:
            said = str(error)
            if isinstance(error, TrainingError):
                failures.append(said)
            yield Finding(directory, name, False, said)
            if name == "weights":
                break  # of what is not there or not finite, nothing else can be said
            continue
        if said is not None:
            yield Finding(directory, name, True, said)
    if failures:
        proof_file.mark_unverified(directory, failures[0])


def check_all_passed(findings: list[Finding]) -> None:
    """Raise if a check failed.

    Raises:
        TrainingError: naming the first that did.
    """
    failed = [finding for finding in findings if not finding.passed]
    if failed:
        raise TrainingError(
            f"{failed[0].directory} is not verified: {len(failed)} of {len(findings)} checks failed; "
            f"the first is {failed[0].check}: {failed[0].said}"
        )
