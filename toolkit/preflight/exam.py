"""The questions of an exam, and whether a stage before it trains on them."""

from collections.abc import Mapping
from typing import Any

from toolkit.evaluation.tasks import Task, load_tasks
from toolkit.preflight.look import Look
from toolkit.recipe.keys import TRAINING

SUBJECT = "data"


def check(look: Look) -> None:
    """Read the tasks, and compare their questions with the prompts that are trained."""
    stage = look.stage
    tasks = load_tasks(stage["tasks"], where=stage.where.get("tasks", "tasks"))
    seen = {**look.before, look.name: look}  # a stage that trains may have an exam of its own
    trained = {
        name: prompts(other) for name, other in seen.items() if other.stage.stage in TRAINING
    }
    for task in tasks:
        look.ok(SUBJECT, f"task {task.name}: {len(task.questions):,} questions, {task.checker}")
        for name, known in trained.items():
            both = sum(asked in known for asked in texts(task))
            if both:
                look.warn(
                    SUBJECT,
                    f"task {task.name}: {both:,} of its questions are among the prompts of stage {name}",
                    "take them out of one side; a score on them says nothing",
                )


def texts(task: Task) -> list[str]:
    """What is asked, as the user says it."""
    return [task.asked(question).strip() for question in task.questions]


def prompts(look: Look) -> set[str]:
    """What the user says last in each row of a stage that was read."""
    found: set[str] = set()
    if look.rows is None or look.rows.format == "text":
        return found
    for row in look.rows.train:
        each: Mapping[str, Any] = dict(row)
        said = each.get("messages") or each.get("prompt") or ""
        if not isinstance(said, str):
            said = next((m["content"] for m in reversed(said) if m["role"] == "user"), "") or ""
        found.add(str(said).strip())
    return found
