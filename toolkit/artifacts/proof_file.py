"""The proof of an artefact on disk, `proof.json`: what it must give again, and whether it did.

It holds token ids of training rows, so it is a record of this machine: it is never pushed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import PROOF, read_json, write_json

NOT_PROVED = "no"
UNFINISHED = "the proof was not finished"


def write_proof(directory: Path, expected: Mapping[str, Any]) -> None:
    """Note what a saved artefact must give; it counts as unverified until `mark_verified`."""
    write_json(
        directory / PROOF, {"verified": NOT_PROVED, "failure": UNFINISHED, "expected": expected}
    )


def read_expected(directory: Path) -> dict[str, Any] | None:
    """What an artefact must give; None where nothing was noted."""
    found = (read_json(directory / PROOF) or {}).get("expected")
    return found if isinstance(found, dict) else None


def mark_verified(directory: Path, how: str) -> None:
    """Note that the proof succeeded: `fresh_load`, `resident_base` or `finite`."""
    _mark(directory, {"verified": how, "failure": None})


def mark_unverified(directory: Path, failure: str) -> None:
    """Note that the proof failed, and at what, in one line."""
    _mark(directory, {"verified": NOT_PROVED, "failure": failure})


def _mark(directory: Path, outcome: dict[str, Any]) -> None:
    found = read_json(directory / PROOF)
    if found is not None and {key: found.get(key) for key in outcome} != outcome:
        write_json(directory / PROOF, found | outcome)


def refusal(directory: Path) -> str | None:
    """Why a folder is not handed on, in one line; None where it may be."""
    if (reason := unverified(directory)) is None:
        return None
    return (
        f"{directory} counts as unverified ({reason}): see what `toolkit verify {directory}` finds, "
        "or train again"
    )


def unverified(directory: Path) -> str | None:
    """Why a folder counts as unverified, in one line; None where it is proved, or of others.

    Whoever hands an artefact on (merge, push) asks `refusal` first.
    """
    found = read_json(directory / PROOF)
    if found is None or found.get("verified") != NOT_PROVED:
        return None
    return str(found.get("failure") or UNFINISHED)
