"""The exam: every model answers every question, greedily and in samples; every answer is kept."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifacts.manifest import StageResult, write_json
from toolkit.errors import RecipeError
from toolkit.evaluation.report import Graded, comparisons, exam_rows, exam_table
from toolkit.evaluation.samples import side_by_side
from toolkit.evaluation.tasks import Task, load_tasks
from toolkit.inference.sampling import Completion, TransformersEngine
from toolkit.recipe import StageRecipe
from toolkit.stages.completions import Completions
from toolkit.stages.exam_progress import ExamProgress
from toolkit.stages.examined import Examined, examined_models
from toolkit.stages.processes import is_first_process, process_index, processes
from toolkit.stages.requests import Request, prompts_of, requests, sampled, samples
from toolkit.stages.terminal import command, console


def run(
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    **objects: Any,
) -> StageResult:
    """Examine models on tasks, and write `report.json` and every completion.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `of`.
        model: the base, instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        **objects: nothing else; the rows of a task belong into `tasks`.

    Raises:
        RecipeError: if `of` names no model, or a prompt leaves no room for its completion.
        DataError: if a task's rows are wrong.
        HubError: if the Hub does not give a model or a task.
        TrainingError: if the device has not enough memory.
    """
    if objects:
        raise RecipeError(
            f"stage 'evaluate' takes no {', '.join(objects)}; give rows inside tasks: "
            'tasks=[{"name": …, "rows": …}]'
        )
    tasks = load_tasks(recipe["tasks"] or [], where=recipe.where.get("tasks", "tasks"))
    models = examined_models(recipe, earlier, model, processing_class)
    lines = [line for examined in models for line in examine(examined, tasks, recipe, output_dir)]
    graded = [
        Graded(**{field.name: line[field.name] for field in fields(Graded)}) for line in lines
    ]
    report = {
        "exam": exam_rows(graded),
        "comparisons": comparisons(graded),
        "tasks": [describe(task) for task in tasks],
        "sampling": {
            **asdict(sampled(recipe)),
            "num_generations": samples(recipe),
            "seed": recipe["seed"],
        },
    }
    if is_first_process():
        write_json(output_dir / "report.json", report)
    if (samples_shown := side_by_side(lines)) is not None:
        console().print(samples_shown, "")
    console().print(exam_table(report))
    command("report", str(output_dir / "report.json"))
    command("texts", str(output_dir / "completions-*.jsonl"))
    metrics = {
        f"{row['stage']}/{row['task']}/{key}": row[key]
        for row in report["exam"]
        for key in ("accuracy", "greedy")
    }
    return StageResult(output_dir, metrics)


def examine(
    examined: Examined, tasks: Sequence[Task], recipe: StageRecipe, output_dir: Path
) -> list[dict[str, Any]]:
    """The lines of one model's completions, those of an interrupted exam among them.

    Each of several processes asks every so-many-th question.
    """
    wanted = {request.key: request for request in requests(examined, tasks, recipe)}
    kept = Completions(
        output_dir, examined.name, {key: request.digest for key, request in wanted.items()}
    )
    there = kept.resume()
    missing = [
        request
        for key, request in wanted.items()
        if key not in there and request.question % processes() == process_index()
    ]
    if missing:
        ask(examined, missing, recipe, kept)
        gc.collect()  # one model in memory at a time
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return kept.finish()


def ask(
    examined: Examined, missing: Sequence[Request], recipe: StageRecipe, kept: Completions
) -> None:
    """Load the model, and have it complete and grade every request; each is kept at once."""
    tokenizer = examined.load_tokenizer()
    engine = TransformersEngine(
        examined.load_model(), tokenizer, batch_size=recipe["per_device_eval_batch_size"]
    )
    runs: list[tuple[list[Request], Iterator[tuple[int, Completion]]]] = []
    for sampling in dict.fromkeys(request.sampling for request in missing):
        chosen = [request for request in missing if request.sampling == sampling]
        # every prompt is checked here, before the first completion
        runs.append((chosen, engine.generate(prompts_of(chosen, tokenizer), sampling)))
    with ExamProgress(examined.name, len(missing)) as progress:
        for chosen, completions in runs:
            for index, completion in completions:
                kept.append(line_of(chosen[index], completion))
                progress.advance(len(completion.input_ids))


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
    )
    return {
        **asdict(graded),
        "asked": asked.question,
        "expected": asked.answer,
        "seed": None if request.sample is None else request.seed,
        "digest": request.digest,
    }


def describe(task: Task) -> dict[str, Any]:
    """A task in the report."""
    return {
        "name": task.name,
        "digest": task.digest,
        "n": len(task.questions),
        "checker": task.checker,
        "where": task.questions[0].where.rpartition(", row ")[0],
    }
