"""The proof that ends a stage: what was saved, loaded again from disk, must be what was trained."""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from toolkit.artifacts import proof_file
from toolkit.artifacts.manifest import StageResult
from toolkit.data.probe import changed_words, probe_words
from toolkit.errors import ToolkitError, TrainingError
from toolkit.models import kept, proof
from toolkit.models.load import load_tokenizer
from toolkit.models.saved_files import KEPT, check_files
from toolkit.stages.prepared import RowsAgain
from toolkit.stages.processes import is_first_process
from toolkit.stages.terminal import note

CPU = torch.device("cpu")


@dataclass
class Saved:
    """What was written, and what it must give when it is loaded again.

    Attributes:
        directory: the stage's folder.
        metrics: what training and the held-out rows measured.
        expected: what the model in memory gave of a few sequences.
        device: where that was computed.
        check: which numbers they are.
        words: what the tokenizer in memory makes of a fixed text and chat.
        rows_again: gives the ids of the first rows as they were trained, and as a tokenizer makes
            them; None where the trainer makes them.
        identity: what the base below an adapter is.
        failure: what is known to be wrong before anything is loaded again.
        shards: the model in memory, where no process holds it whole.
        watched: what doctor and guard found, and the precision computed in, for the manifest.
    """

    directory: Path
    metrics: dict[str, Any]
    expected: proof.Expected
    device: torch.device
    check: proof.Check = proof.LOG_PROBABILITIES
    words: dict[str, Any] = field(default_factory=dict)
    rows_again: RowsAgain | None = None
    identity: dict[str, Any] | None = None
    failure: str | None = None
    shards: Any = None
    watched: dict[str, Any] = field(default_factory=dict)


def prove(saved: Saved, *, reload: dict[str, Any] | None, resident: Any = None) -> StageResult:
    """Load the artefact from disk as a user would, and compare it with what was trained.

    The first process does it, which wrote the files; the others wait at the end of the stage. Where
    the model is sharded, all of them do.

    Args:
        saved: what `save` returned; the trainer should be gone, so that one base is in memory.
        reload: what the base is loaded with; None where it cannot be loaded again.
        resident: the model in memory, for that case.

    Raises:
        TrainingError: if it is not what was trained; the files stay, marked as unverified.
    """
    gc.collect()
    if resident is None:
        kept.give_back()
    result = StageResult(saved.directory, saved.metrics)
    if saved.shards is None and not is_first_process():
        return result
    try:
        found = compared(saved, reload, resident)
    except ToolkitError as error:
        if is_first_process():
            proof_file.mark_unverified(saved.directory, str(error))
        raise
    if is_first_process():
        proof_file.mark_verified(saved.directory, found["verified"])
        result.manifest = {"verification": found, "base_identity": saved.identity} | saved.watched
    return result


def compared(saved: Saved, reload: dict[str, Any] | None, resident: Any) -> dict[str, Any]:
    """What the proof found; arguments and errors as of `prove`."""
    if saved.shards is not None:
        # torch.distributed.tensor takes a while to import, and few need it
        from toolkit.models.sharded import agree, prove_on_shards

        agree(fault_of(saved) if is_first_process() else None)
        found = prove_on_shards(saved.directory, saved.expected, saved.shards, saved.check)
        where = "put on the shards of the base"
    else:
        if fault := fault_of(saved):
            raise TrainingError(fault)
        if not saved.expected.probe:
            check_files(saved.directory)
            return {"verified": "finite", "reason": "the model is sharded"}
        found = loaded_where_it_fits(saved, reload, resident)
        where = "loaded again"
    note(
        f"proved: {where} from {saved.directory}, {saved.check.name} differ by at most "
        f"{found['largest_difference']:.1g}"
    )
    return found


def fault_of(saved: Saved) -> str | None:
    """What is known to be wrong before any weight is loaded, in one line; None if nothing is."""
    if saved.failure:
        return f"{saved.directory}: {saved.failure}{KEPT}"
    try:
        check_words(saved)
    except ToolkitError as error:
        return str(error)
    return None


def loaded_where_it_fits(
    saved: Saved, reload: dict[str, Any] | None, resident: Any
) -> dict[str, Any]:
    """What the proof found where training was, or on the CPU if the base does not fit there again.

    Raises:
        TrainingError: if it fits nowhere, or is not what was trained.
    """
    reload = dict(reload) if reload is not None else None
    places = [saved.device, *([CPU] if saved.device.type != "cpu" and reload is not None else [])]
    for device in places:
        try:
            return proof.prove(
                saved.directory,
                saved.expected,
                resident=None if reload is not None else resident,
                device=device,
                check=saved.check,
                elsewhere=device.type != saved.device.type,
                **(reload or {}),
            )
        except torch.OutOfMemoryError:
            gc.collect()
            if reload and device != places[-1]:
                reload.pop("device_map", None)
                note(f"the base does not fit on {device.type} again: loaded on the CPU instead")
    raise TrainingError(
        f"{saved.directory}: the base does not fit into memory again, so what was saved could not be "
        f"compared; free some and run toolkit verify {saved.directory}"
    )


def check_words(saved: Saved) -> None:
    """Refuse a saved tokenizer or chat template that makes other tokens than were trained.

    Raises:
        TrainingError: naming which.
    """
    tokenizer = load_tokenizer(saved.directory)
    if changed := changed_words(saved.words, probe_words(tokenizer)):
        raise TrainingError(f"{saved.directory}: {changed}, once it is loaded{KEPT}")
    if saved.rows_again is not None:
        trained, again = saved.rows_again(tokenizer)
        for row, (before, now) in enumerate(zip(trained, again, strict=True)):
            if before != now:
                raise TrainingError(
                    f"{saved.directory}: the saved chat template makes other tokens of sequence "
                    f"{row + 1} than those that were trained{KEPT}"
                )
