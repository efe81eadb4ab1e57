"""What the probes found around each stage, as a page shows it."""

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.artifacts.markdown import NONE
from toolkit.evaluation.probes import in_words
from toolkit.report.run_folder import Run, Stage


def probes_of(run: Run) -> dict[str, Any] | None:
    """A line for each group and a cell for each stage that was asked; None where none was."""
    stages = [stage for stage in run.stages if "after" in noted(stage)]
    if not stages:
        return None
    columns = [
        {"name": stage.name, "of": noted(stage).get("before", {}).get("of", "")} for stage in stages
    ]
    groups = dict.fromkeys(group for stage in stages for group in noted(stage)["after"]["right"])
    return {
        "columns": columns,
        "rows": [{"group": group, "cells": [cell(s, group) for s in stages]} for group in groups],
    }


def noted(stage: Stage) -> Mapping[str, Any]:
    """What a stage's manifest says of the probes; {} where nothing."""
    found = stage.manifest.get("probes")
    return found if isinstance(found, Mapping) else {}


def cell(stage: Stage, group: str) -> dict[str, Any]:
    """How many are right, before and after, and whether that is clearly worse."""
    found = noted(stage)
    for each in found.get("groups") or ():
        if each["group"] == group:
            text = f"{each['before']} → {each['after']} of {each['n']}"
            return {"text": text, "worse": bool(each["worse"])}
    right, margins = (found["after"].get(key, {}).get(group) for key in ("right", "margins"))
    text = NONE if right is None else f"{right} of {len(margins or ())}"
    return {"text": text, "worse": False}


def worse_by_probes(stage: Stage) -> Iterator[str]:
    """A sentence for each group that a stage made clearly worse."""
    for each in noted(stage).get("groups") or ():
        if each["worse"]:
            yield in_words(stage.name, each)
