"""The probes around a stage: what it started from and what it made, asked the same short questions.

Both are asked when the stage has been proved, over one base: an adapter that is continued lies
unchanged on disk. What was asked of the same weights before is not asked again.
"""

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch

from toolkit.artifacts.manifest import MANIFEST, RUNNING, STATUS, digest_of, read_json
from toolkit.artifacts.model_files import file_digest, model_files
from toolkit.data.template_render import Template
from toolkit.errors import DataError
from toolkit.evaluation import probes
from toolkit.evaluation.probes import Probe
from toolkit.inference.likelihood import log_probabilities
from toolkit.models import kept
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import keys_of
from toolkit.stages.examined import BASE, Examined, examined_model
from toolkit.stages.own_launch import PLUGINS, SHARDING
from toolkit.stages.prepared import starting_point
from toolkit.stages.processes import device, is_first_process
from toolkit.stages.requests import document_ids, rendered
from toolkit.stages.terminal import note

ROWS = 16
"""Answers that go through the model together, at most."""
LOGITS = 50_000_000
"""Numbers that it gives of them, at most: 200 MB in float32."""

Row = tuple[list[int], list[int]]
"""Token ids of a question and of an answer."""


def probed(
    stage: StageRecipe, folder: Path, earlier: Mapping[str, Path], objects: Mapping[str, Any]
) -> dict[str, Any]:
    """What the probes say of a finished stage, for its manifest; a stage never fails by them.

    The first process asks alone, and the others wait at the end of the stage.

    Args:
        stage: its keys.
        folder: where it lies, proved.
        earlier: folders of finished stages, by name.
        objects: what Python gave in place of names.
    """
    if not stage.get("probes", False) or not is_first_process():
        return {}
    reason = why_not(stage, objects)
    try:
        found = {"skipped": reason} if reason else asked(stage, folder, earlier, objects)
    except Exception as error:  # whatever a template or a device refuses, the stage is done
        found = {"skipped": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    kept.give_back()
    for line in lines_of(stage, found):
        note(line)
    return {"probes": found}


def why_not(stage: StageRecipe, objects: Mapping[str, Any]) -> str | None:
    """Why a stage cannot be asked, in words; None if it can."""
    if "model" in objects:
        return "the model is one that Python lent"
    if any(os.environ.get(name, "").lower() in {"1", "true", "yes"} for name in SHARDING[:2]):
        return "the processes share one model"
    if any(stage.get(key) for key in PLUGINS):
        return "the processes share one model"
    return None


def asked(
    stage: StageRecipe, folder: Path, earlier: Mapping[str, Path], objects: Mapping[str, Any]
) -> dict[str, Any]:
    """The probes before and after, and what changed; arguments as of `probed`."""
    started = time.monotonic()
    questions = probes.load_probes()
    before, after = models_of(stage, folder, earlier, objects)
    places = [
        *reversed([*earlier.values()]),
        *([Path(before.place).expanduser()] if before else []),
    ]
    found: dict[str, Any] = {"set": probes.digest_of_probes(questions)}
    with one_base():
        put_away()
        if before is not None:
            of: dict[str, Any] = {"of": str(stage["start_from"] or BASE)}
            found["before"] = of | answers_of(before, questions, places)
        found["after"] = answers_of(after, questions, [])
    if before is not None:
        found["groups"] = probes.changes(found["before"]["margins"], found["after"]["margins"])
    return found | {"seconds": round(time.monotonic() - started, 2)}


def one_base() -> AbstractContextManager[Any]:
    """The base that the pipeline keeps; where none is kept, one for as long as the probes take."""
    return nullcontext() if kept.is_kept() else kept.one_base(device(), note)


def put_away() -> None:
    """Give back the base, or the memory of a model that is no adapter; each collects what is left."""
    if kept.is_lent():
        kept.give_back()
    else:
        kept.forget()


def models_of(
    stage: StageRecipe, folder: Path, earlier: Mapping[str, Path], objects: Mapping[str, Any]
) -> tuple[Examined | None, Examined]:
    """What a stage started from, if it was a model, and what it made."""
    if stage.stage == "pretrain":
        whole = StageRecipe("evaluate", stage.name, {"model_name_or_path": str(folder)}, {})
        return None, examined_model(BASE, whole, {})
    tokenizer = objects.get("processing_class")
    start = starting_point(stage, earlier) or BASE
    before = examined_model(start, stage, {}, tokenizer=tokenizer)
    return before, examined_model(str(folder), stage, {})


def answers_of(
    examined: Examined, questions: Sequence[Probe], places: Sequence[Path]
) -> dict[str, Any]:
    """A model's margins, how many are right, and a digest of all that they depend on.

    Args:
        examined: the model.
        questions: the probes.
        places: folders of stages that may have asked it already.
    """
    digest = identity_of(examined, questions)
    if (known := known_answers(digest, places)) is not None:
        return known
    with randomness_kept():
        margins = margins_of(examined, questions)
    put_away()
    return {"digest": digest, "right": probes.right_of(margins), "margins": margins}


def known_answers(digest: str, places: Sequence[Path]) -> dict[str, Any] | None:
    """What an earlier stage has noted of the same model; None if none has."""
    for place in places:
        noted = (read_json(place / MANIFEST) or {}).get("probes")
        for part in ("after", "before"):
            found = noted.get(part) if isinstance(noted, dict) else None
            if isinstance(found, dict) and found.get("digest") == digest:
                return {key: found[key] for key in ("digest", "right", "margins")}
    return None


def identity_of(examined: Examined, questions: Sequence[Probe]) -> str:
    """A digest of the weights, of how they are loaded, of the tokenizer given, and of the probes."""
    below = examined.adapter["base_model_name_or_path"] if examined.adapter else None
    arguments = examined.recipe.arguments("ModelConfig")
    how = {key: value for key, value in arguments.items() if key in keys_of("evaluate")}
    how["model_init_kwargs"] = examined.recipe.get("model_init_kwargs")
    files = [files_of(place) for place in (examined.place, below) if place]
    words = examined.tokenizer
    given = [words.get_vocab(), words.chat_template] if words is not None else None
    return digest_of([probes.digest_of_probes(questions), files, how, given])


def files_of(place: str) -> Any:
    """What a model's folder holds, by digest, less what only the run writes; of a Hub id itself."""
    path = Path(place).expanduser()
    if not path.is_dir():
        return place
    files = [file for file in model_files(path) if file.name not in (STATUS, RUNNING)]
    return {file.name: file_digest(file) for file in files}


@torch.no_grad()
def margins_of(examined: Examined, questions: Sequence[Probe]) -> dict[str, list[float]]:
    """How much likelier each right answer is than the wrong one, by group.

    Raises:
        DataError: if the model has too few positions for a probe.
    """
    tokenizer = examined.load_tokenizer()
    rows = rows_of(questions, tokenizer)
    model = examined.load_model().eval()
    longest = max(len(question) + len(answer) for question, answer in rows)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and 0 < limit < longest:
        raise DataError(f"the longest has {longest:,} tokens, and the model {limit:,} positions")
    sums = likelihoods(model, rows)
    found: dict[str, list[float]] = {}
    for probe, right, wrong in zip(questions, sums[::2], sums[1::2], strict=True):
        found.setdefault(probe.group, []).append(float(f"{probe.margin(right, wrong):.4g}"))
    return found


def rows_of(questions: Sequence[Probe], tokenizer: Any) -> list[Row]:
    """Each question with its right answer, then with its wrong one.

    By the chat template where there is one; else as a document, as an exam asks a base.
    """
    template = Template(tokenizer) if tokenizer.chat_template else None
    rows: list[Row] = []
    for probe in questions:
        if template is None:
            prompt = document_ids(tokenizer, f"Question: {probe.question}\nAnswer:")
        else:
            messages = [{"role": "user", "content": probe.question}]
            prompt = rendered(messages, None, tokenizer, template)
        for answer in (probe.right, probe.wrong):
            text = answer if template else f" {answer}"
            rows.append((prompt, list(tokenizer(text, add_special_tokens=False).input_ids)))
    return rows


def likelihoods(model: Any, rows: Sequence[Row]) -> list[float]:
    """The log-probability of each answer, rows of about one length together."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at][0]) + len(rows[at][1]))
    longest = sum(map(len, rows[order[-1]]))
    size = max(1, min(ROWS, LOGITS // (longest * model.config.get_text_config().vocab_size)))
    found = [0.0] * len(rows)
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        for at, logs in zip(
            chosen, log_probabilities(model, [rows[c] for c in chosen]), strict=True
        ):
            found[at] = sum(logs)
    return found


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Leave every random number generator as it was."""
    python, of_numpy = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(of_numpy)


def lines_of(stage: StageRecipe, found: Mapping[str, Any]) -> list[str]:
    """What a person is told: every group that is clearly worse, else one short line."""
    if "skipped" in found:
        return [f"probes: not asked: {found['skipped']}"]
    right, n = found["after"]["right"], sum(map(len, found["after"]["margins"].values()))
    now = sum(right.values())
    if "groups" not in found:
        return [f"probes: {now} of {n} right"]
    worse = [
        f"probes: {probes.in_words(stage.name, each)}" for each in found["groups"] if each["worse"]
    ]
    before, of = sum(found["before"]["right"].values()), found["before"]["of"]
    return worse or [f"probes: {before} → {now} of {n} right; no group clearly worse than {of}"]
