"""How rewards are spread: what an exam's samples scored, held-out pairs, ranked answers."""

import re
from collections.abc import Iterator
from typing import Any

from toolkit.artifacts.card_training import rewards_of
from toolkit.report.curves import spread
from toolkit.report.pen import Drawing
from toolkit.report.run_folder import Run, Stage

DIGEST = re.compile(r"-[0-9a-f]{8}$")
PAIRS = "pairs.jsonl"


def spreads(run: Run, stage: Stage) -> list[Drawing]:
    """The distributions of scores that a stage has left."""
    drawings = [*pair_scores(run, stage), *sample_scores(run, stage)]
    return [drawing for drawing in drawings if drawing is not None]


def pair_scores(run: Run, stage: Stage) -> Iterator[Drawing | None]:
    """Of a reward model, the scores of held-out chosen and rejected answers."""
    if stage.kind != "reward":
        return
    groups: dict[str, list[float]] = {"rejected": [], "chosen": []}
    for line in run.lines(stage.folder / PAIRS):
        for side, values in groups.items():
            if (value := measured(line.get(f"{side}_score"))) is not None:
                values.append(value)
    yield spread("Rewards of held-out pairs", groups, "reward")


def sample_scores(run: Run, stage: Stage) -> Iterator[Drawing | None]:
    """Of an exam or a ranking, the scores of the samples, by task and model."""
    rewards = rewards_of({"recipe": stage.recipe})
    for path in sorted(stage.folder.glob("scores-*.jsonl")):
        tasks: dict[str, dict[str, list[float]]] = {}
        for line in run.lines(path):
            if (value := measured(line.get("score"))) is not None:
                task = tasks.setdefault(str(line.get("task")), {})
                task.setdefault(str(line.get("stage")), []).append(value)
        stem = path.stem.removeprefix("scores-")
        safe = {re.sub(r"[^A-Za-z0-9._-]+", "-", name): name for name in rewards}
        reward = safe.get(stem) or safe.get(DIGEST.sub("", stem)) or stem
        for task, groups in tasks.items():
            place = f"of {task}" if stage.kind == "evaluate" else "of its samples"
            yield spread(f"Rewards {place}", groups, f"reward by {reward}")


def measured(value: Any) -> float | None:
    """A score; None where there is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None
