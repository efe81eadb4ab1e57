"""What a reader must not miss: what failed, what the doctor said, what was left out or is worse."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.artifacts.proof_file import unverified
from toolkit.report.exams import worse
from toolkit.report.probes import noted, worse_by_probes
from toolkit.report.run_folder import FINISHED, Run, Stage, failure
from toolkit.report.words import number, shown

BAD, WARNING, NOTE = "bad", "warning", "note"
DIAGNOSES, DIAGNOSIS = "diagnoses", "diagnosis"
"""What the doctor said: `name`, `message`, `step` and `value` of each in the manifest; in the log,
which alone is there before a stage is finished, a line with the name as `diagnosis`."""


@dataclass(frozen=True)
class Finding:
    """One line that a reader must see.

    Attributes:
        level: "bad", "warning" or "note".
        where: the stage; "" for the run.
        what: a word or two.
        message: a sentence.
    """

    level: str
    where: str
    what: str
    message: str


def findings_of(run: Run, exams: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Everything of a run that a reader must see, the worst first."""
    found = [*of_the_run(run)]
    for stage in run.stages:
        found += [*diagnoses(stage), *of_the_proof(stage), *left_out(stage), *of_pairs(stage)]
        found += of_probes(stage)
    for each in worse(exams):
        message = (
            f"{each['b']} answers {each['lost']:,} questions of {each['task']} wrong that "
            f"{each['a']} answers right, and {each['gained']:,} the other way ({each['p']})"
        )
        found.append(Finding(WARNING, str(each["b"]), "worse", message))
    found += [
        Finding(NOTE, "", "unreadable", f"lines of {place} that are no JSON, left out: {count:,}")
        for place, count in run.unreadable.items()
    ]
    order = (BAD, WARNING, NOTE)
    return sorted(found, key=lambda finding: order.index(finding.level))


def of_the_run(run: Run) -> Iterator[Finding]:
    """What ended the run, and what is not finished."""
    ended = failure(run)
    if ended:
        log = f" (the traceback is in {ended['log']})" if ended["log"] else ""
        said = f"{ended['kind']}: {shown(ended['message'], 500)}{log}"
        yield Finding(BAD, ended["stage"], "ended", said)
    unfinished = [stage for stage in run.stages if stage.state != FINISHED]
    for stage in unfinished:
        if not ended or stage.name != ended["stage"]:
            steps = f" at step {stage.steps:,}" if stage.steps else ""
            yield Finding(NOTE, stage.name, stage.state, f"this stage is {stage.state}{steps}")


def diagnoses(stage: Stage) -> Iterator[Finding]:
    """What the doctor said of a stage."""
    in_log = [entry | {"name": entry[DIAGNOSIS]} for entry in stage.entries if DIAGNOSIS in entry]
    for each in stage.manifest.get(DIAGNOSES) or in_log:
        if isinstance(each, Mapping):
            value = each.get("value")
            known = f", {number(value)}" if isinstance(value, int | float) else ""
            at = f" (step {each['step']}{known})" if each.get("step") is not None else ""
            name = str(each.get("name", "doctor")).replace("_", " ")
            yield Finding(WARNING, stage.name, name, f"{shown(each.get('message', ''), 500)}{at}")


def of_the_proof(stage: Stage) -> Iterator[Finding]:
    """Whether what was saved was proved."""
    if reason := unverified(stage.folder):
        yield Finding(BAD, stage.name, "unverified", shown(reason, 500))


def left_out(stage: Stage) -> Iterator[Finding]:
    """Rows and answers that were left out, counted."""
    bad = stage.manifest.get("bad_rows") or {}
    if bad.get("count"):
        first = ", ".join(map(str, bad.get("first") or ()))
        said = f"{bad['count']:,} bad rows were left out (first: {first})"
        yield Finding(WARNING, stage.name, "left out", said)
    for reward, counts in (stage.manifest.get("rewards") or {}).items():
        asked = sum(counts.values())
        for what, words in (("unscored", "gave no score"), ("failed", "failed")):
            if counts.get(what):
                said = f"{reward} {words} for {counts[what]:,} of {asked:,} answers: left out"
                yield Finding(WARNING, stage.name, what, said)


def of_pairs(stage: Stage) -> Iterator[Finding]:
    """What a reward model goes by, where that is length."""
    pairs = stage.manifest.get("metrics", {}).get("pairs")
    liked = pairs.get("length_bias") if isinstance(pairs, Mapping) else None
    if liked:
        said = f"this reward model merely likes {'long' if liked == 'longer' else 'short'} answers"
        yield Finding(WARNING, stage.name, "length", said)


def of_probes(stage: Stage) -> Iterator[Finding]:
    """What a stage made clearly worse, or why it was not asked."""
    for said in worse_by_probes(stage):
        yield Finding(WARNING, stage.name, "worse", shown(said, 500))
    if reason := noted(stage).get("skipped"):
        said = f"the probes were not asked: {reason}"
        yield Finding(NOTE, stage.name, "probes", shown(said, 500))
