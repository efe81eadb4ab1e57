"""The exam: every model answers every question, greedily and in samples; every answer is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifacts.manifest import StageResult, write_json
from toolkit.errors import RecipeError
from toolkit.evaluation.graded import Graded, Key
from toolkit.evaluation.report import Asked, exam_report
from toolkit.evaluation.samples import side_by_side
from toolkit.evaluation.table import exam_table
from toolkit.evaluation.tasks import Task, load_tasks
from toolkit.inference.sampling import Completion
from toolkit.inference.thinking.methods import Method
from toolkit.recipe import StageRecipe
from toolkit.stages.answered import answered
from toolkit.stages.examined import Examined, examined_models
from toolkit.stages.judging import Judging
from toolkit.stages.processes import is_first_process
from toolkit.stages.requests import Request, prompts_of, requests, sampled, samples
from toolkit.stages.scored import Answer, Entry, Scorer, counts_of, scorers, scores_of
from toolkit.stages.terminal import command, console
from toolkit.stages.thought import methods_of, points, thoughts
from toolkit.stages.traced import exam_answers, keep

Line = dict[str, Any]
"""A kept completion; see `line_of`."""


def run(
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    reward_funcs: Sequence[Entry] | None = None,
    **objects: Any,
) -> StageResult:
    """Examine models on tasks, and write `report.json` and every completion.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `of` and `reward_funcs`.
        model: the base, instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        reward_funcs: functions, or what a recipe would name; each question's best-scored sample is
            reported.
        **objects: nothing else; the rows of a task belong into `tasks`.

    Raises:
        RecipeError: if `of` names no model, there is no such reward, or a prompt leaves no room for
            its completion.
        DataError: if a task's rows are wrong.
        HubError: if the Hub does not give a model or a task.
        TrainingError: if the device has not enough memory.
    """
    if objects:
        raise RecipeError(
            f"stage 'evaluate' takes no {', '.join(objects)}; give rows inside tasks: "
            'tasks=[{"name": …, "rows": …}]'
        )
    entries = reward_funcs if reward_funcs is not None else recipe["reward_funcs"] or ()
    judges = scorers(entries, recipe, earlier)  # what is wrong shows before the first completion
    ways = methods_of(recipe, judges)
    tasks = load_tasks(recipe["tasks"] or [], where=recipe.where.get("tasks", "tasks"))
    models = examined_models(recipe, earlier, model, processing_class)
    found = [each for one in models for each in examine(one, tasks, recipe, output_dir)]
    answers = [answer_of(*each) for each in found if each[2]["sample"] is not None]
    scores = scores_of(entries, answers, recipe, earlier, output_dir) if answers else {}
    lines = [line for _, _, line in found]
    asked = Asked(
        models=[each.name for each in models],
        started=started_from(models),
        working={task.name: task.working for task in tasks if task.working},
        scores=scores,
    )
    report = report_of(lines, asked, tasks, recipe)
    report["scaling"] += thought_about(found, ways, judges[:1], scores, recipe, output_dir)
    if is_first_process():
        write_json(output_dir / "report.json", report)
    show(lines, asked, report, output_dir)
    metrics = {
        f"{row['stage']}/{row['task']}/{key}": row[key]
        for row in report["exam"]
        for key in ("accuracy", "greedy")
    }
    return StageResult(output_dir, metrics, {"rewards": counts_of(scores)} if scores else {})


def examine(
    examined: Examined, tasks: Sequence[Task], recipe: StageRecipe, output_dir: Path
) -> list[tuple[Examined, Request, Line]]:
    """One model's completions, each with who was asked what."""
    wanted = requests(examined, tasks, recipe)
    lines = answered(examined, wanted, recipe, output_dir, prompts_of=prompts_of, line_of=line_of)
    return [(examined, request, line) for request, line in zip(wanted, lines, strict=True)]


def thought_about(
    found: Sequence[tuple[Examined, Request, Line]],
    ways: Sequence[Method],
    judges: Sequence[Scorer],
    scores: Mapping[str, Mapping[Key, float | None]],
    recipe: StageRecipe,
    output_dir: Path,
) -> list[dict[str, Any]]:
    """What every model achieves in every way of thinking: points as of `scaling_points`.

    What it answers is kept as traces, where the recipe asks for it.

    Args:
        found: the exam's completions, with who was asked what.
        ways: of thinking.
        judges: the reward that judges, if there is one.
        scores: of each reward, every sample's score.
        recipe: the stage's keys.
        output_dir: the stage's folder.
    """
    kept: list[Mapping[str, Any]] = []
    for examined in {each.name: each for each, _, _ in found}.values():
        mine = [(request, line) for each, request, line in found if each is examined]
        judging = None
        if judges:
            of_samples = scores.get(judges[0].name, {})
            known: dict[tuple[Key, tuple[int, ...]], float | None] = {
                ((*request.key[:3], None), tuple(line["input_ids"])): of_samples[request.key]
                for request, line in mine
                if request.key in of_samples
            }
            judging = Judging(judges[0], examined, answer_of, known)
        kept += thoughts(examined, mine, ways, recipe, output_dir, judging) if ways else []
    if recipe["traces"]:
        keep(recipe["traces"], exam_answers(found, kept, scores))
    return points(kept, ways, judges[0].name if judges else None)


def started_from(models: Sequence[Examined]) -> dict[str, str]:
    """Of each model, the examined one whose adapter it was trained on from."""
    names = {each.name for each in models}
    parents = {each.name: each.start_from or "" for each in models}
    return {name: parent for name, parent in parents.items() if parent in names}


def report_of(
    lines: Sequence[Line], asked: Asked, tasks: Sequence[Task], recipe: StageRecipe
) -> dict[str, Any]:
    """What `report.json` holds."""
    graded = [
        Graded(**{field.name: line[field.name] for field in fields(Graded)}) for line in lines
    ]
    return {
        **exam_report(graded, asked),
        "tasks": [describe(task) for task in tasks],
        "sampling": {
            **asdict(sampled(recipe)),
            "num_generations": samples(recipe),
            "seed": recipe["seed"],
        },
    }


def show(lines: Sequence[Line], asked: Asked, report: Mapping[str, Any], output_dir: Path) -> None:
    """Print answers side by side, the tables, and where all of it is."""
    if (samples_shown := side_by_side(lines, asked.started)) is not None:
        console().print(samples_shown, "")
    console().print(exam_table(report))
    command("report", str(output_dir / "report.json"))
    command("texts", str(output_dir / "completions-*.jsonl"))


def line_of(request: Request, completion: Completion) -> dict[str, Any]:
    """A completion as it is kept: graded, with what was asked and expected."""
    asked = request.asked
    graded = Graded(
        stage=request.stage,
        task=request.task.name,
        question=request.question,
        sample=request.sample,
        text=completion.text,
        stopped=completion.stopped,
        right=request.task.is_right(asked, completion.text),
        tokens=len(completion.input_ids),
        said=request.task.said(asked, completion.text),
    )
    return {
        **asdict(graded),
        "asked": asked.question,
        "expected": asked.answer,
        "seed": None if request.sample is None else request.seed,
        "digest": request.digest,
        "input_ids": completion.input_ids,
    }


def answer_of(examined: Examined, request: Request, line: Mapping[str, Any]) -> Answer:
    """A completion as rewards read it: what was asked as messages, without solved examples."""
    asked = request.asked
    columns: dict[str, Any] = {"question": asked.question, "answer": asked.answer}
    if asked.choices:
        columns["choices"] = list(asked.choices)
    return Answer(
        key=request.key,
        prompt=request.task.messages(asked),
        tools=None,
        text=line["text"],
        input_ids=line["input_ids"],
        stopped=line["stopped"],
        columns=columns,
        writer=examined,
        digest=request.digest,
    )


def describe(task: Task) -> dict[str, Any]:
    """A task in the report."""
    return {
        "name": task.name,
        "digest": task.digest,
        "n": len(task.questions),
        "checker": task.checker,
        "where": task.questions[0].where.rpartition(", row ")[0],
    }
