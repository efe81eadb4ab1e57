"""Stages in order: skip what is finished, resume what is not, hand each adapter to the next."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from toolkit.artifacts import allowed, inputs, manifest, plots
from toolkit.artifacts.inside import check_inside
from toolkit.artifacts.manifest import RunResult, StageResult
from toolkit.errors import HubError, RecipeError
from toolkit.importing import import_at_once
from toolkit.models import kept
from toolkit.recipe import Recipe, StageRecipe, load_recipe
from toolkit.report import page as report
from toolkit.stages import own_launch, pushing, terminal
from toolkit.stages.failures import one_line
from toolkit.stages.machines import look_at_disks, send
from toolkit.stages.next_steps import after_run, after_stage
from toolkit.stages.probed import probed
from toolkit.stages.processes import (
    device,
    from_first,
    is_first_process,
    join,
    meet,
    processes,
    writes_here,
)
from toolkit.stages.resources import Usage
from toolkit.stages.run_folder import alone_in, inputs_before, refuse_or_clear
from toolkit.stages.run_record import RunRecord, recorded
from toolkit.stages.signals import stopping_at_once

REPORT = "report.json"
RANKED = "ranked.jsonl"
PATIENCE_S = 1800  # for another process, where no stage has a ddp_timeout: TRL's own default


def run(
    recipe: str | Path,
    *,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    fresh_optimizer: bool = False,
    until: str | None = None,
    **overrides: Any,
) -> RunResult:
    """Run a recipe file: one stage or a pipeline.

    Args:
        recipe: the YAML file.
        overwrite: rerun finished stages whose inputs changed, and all that follows from them.
        allow_change: recipe keys, or words of `manifest.INPUTS`, with which a stage that was
            interrupted goes on although they are not what they were.
        fresh_optimizer: go on from a checkpoint without its optimizer.
        until: the name of the last stage that is run.
        **overrides: recipe keys that win over the file, for every stage that knows them.

    Returns:
        The result of every stage.

    Raises:
        ToolkitError: one of its children; the message says what to do.
    """
    asked = allowed.asked_for(
        load_recipe(recipe, keywords=overrides), allow_change, fresh_optimizer=fresh_optimizer
    )
    return run_recipe(asked, overwrite=overwrite, until=until)


def run_recipe(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    objects: Mapping[str, Any] | None = None,
    until: str | None = None,
    words: Sequence[str] | None = None,
) -> RunResult:
    """Run the stages of a resolved recipe in order.

    Args:
        recipe: the resolved recipe.
        overwrite: rerun what changed, and what follows from it.
        objects: what Python gave in place of names, for a recipe of one stage.
        until: the name of the last stage that is run.
        words: what the command line was given, to give it again to a launch of one stage.

    Raises:
        RecipeError: if there is no stage `until`.
    """
    if until is not None and until not in (names := [stage.name for stage in recipe.stages]):
        raise RecipeError(f"--until: no stage {until!r}; the recipe has {', '.join(names)}")
    why = None if until is not None else own_launch.reason(recipe)
    if why is not None and processes() == 1:
        return own_launch.run_apart(recipe, why, words, overwrite=overwrite)
    terminal.hide_library_bars()
    join(max(stage.get("ddp_timeout") or PATIENCE_S for stage in recipe.stages))
    with stopping_at_once(), recorded(recipe.output_dir) as record, one_line(recipe.output_dir):
        look_at_disks(recipe)
        recipe = pushing.with_repositories(recipe)
        return run_all(
            recipe, record, overwrite=overwrite, objects=objects or {}, until=until, why=why
        )


def run_all(
    recipe: Recipe,
    record: RunRecord,
    *,
    overwrite: bool,
    objects: Mapping[str, Any],
    until: str | None = None,
    why: str | None = None,
) -> RunResult:
    """Run the stages and push what is to be pushed; arguments and errors as of `run_recipe`.

    Raises:
        TrainingError: if there is a reason `why` a process runs one stage only, when it has.
    """
    result = RunResult(recipe.output_dir)
    earlier: dict[str, Path] = {}
    unpushed: dict[str, str] = {}
    with one_base(recipe):
        for stage in recipe.stages:
            folder = recipe.output_dir / stage.name if recipe.is_pipeline else recipe.output_dir
            check_inside(recipe.output_dir, folder)
            result.stages[stage.name] = run_one(
                recipe, stage, folder, earlier, record, overwrite=overwrite, objects=objects
            )
            kept.give_back()
            earlier[stage.name] = folder
            if processes() == 1:
                push(stage, folder, unpushed)
            meet()
            if stage.name == until:
                break
            if why is not None and record.stage == stage.name and stage is not recipe.stages[-1]:
                raise own_launch.one_stage_only(stage, why)
    if recipe.is_pipeline and is_first_process() and len(earlier) == len(recipe.stages):
        gather_reports(recipe)
        write_report(recipe.output_dir)
        after_run(recipe)
    for stage in pushed_last(recipe):
        if stage.name in earlier:
            push(stage, earlier[stage.name], unpushed)
    if unpushed:
        raise HubError("; ".join(unpushed.values()))
    return result


def one_base(recipe: Recipe) -> AbstractContextManager[Any]:
    """Keep the base in memory from stage to stage; several processes may shard it, so not there."""
    if not recipe.is_pipeline or processes() > 1:
        return nullcontext()
    return kept.one_base(device(), terminal.note)


def push(stage: StageRecipe, folder: Path, unpushed: dict[str, str]) -> None:
    """Push a finished stage; the stages after it run all the same if that fails.

    Args:
        stage: its recipe.
        folder: where it is.
        unpushed: what went wrong, by stage; it is told when all stages are finished.
    """
    unpushed.pop(stage.name, None)
    if is_first_process() and (failure := pushing.push_finished(stage, folder)) is not None:
        unpushed[stage.name] = failure


def pushed_last(recipe: Recipe) -> Sequence[StageRecipe]:
    """The stages that are pushed when all are finished.

    Of several processes, the others would wait for the first one's pushes longer than they may. And
    what an exam found of a stage before it stands in that stage's card.
    """
    exams = [at for at, stage in enumerate(recipe.stages) if stage.stage == "evaluate"]
    return recipe.stages if processes() > 1 else recipe.stages[: exams[-1] if exams else 0]


def gather_reports(recipe: Recipe) -> None:
    """Put what every exam found together in the run's own `report.json`."""
    exams = [stage.name for stage in recipe.stages if stage.stage == "evaluate"]
    reports = [manifest.read_json(recipe.output_dir / name / REPORT) or {} for name in exams]
    if reports:
        gathered = {
            part: [row for report in reports for row in report.get(part, ())]
            for part in ("exam", "comparisons")
        }
        manifest.write_json(recipe.output_dir / REPORT, gathered)


def write_report(folder: Path) -> None:
    """Write the run's page; one that cannot be written is told, and fails nothing."""
    try:
        page, _ = report.write_report(folder)
        terminal.note(f"report: {page}")
    except Exception as error:  # whatever stands in a run's files, the run is done
        said = " ".join(f"{type(error).__name__}: {error}".split())
        terminal.note(f"no report ({said}); `toolkit report {folder} --debug` shows where")


def run_one(
    recipe: Recipe,
    stage: StageRecipe,
    folder: Path,
    earlier: Mapping[str, Path],
    record: RunRecord,
    *,
    overwrite: bool,
    objects: Mapping[str, Any],
) -> StageResult:
    """Skip a finished stage, or run it and write its manifest last."""
    terminal.headline(stage.stage, stage.name, str(folder))
    stage = with_earlier_rows(stage, earlier)
    given = inputs.inputs_of(stage, earlier, objects)
    done = manifest.read_json(folder / manifest.MANIFEST)
    before = done["inputs"] if done else inputs_before(folder)
    found = manifest.changes(before, given) if before is not None else []
    changed = allowed.others(found, () if done else stage.allow_change, terminal.note)
    changed += manifest.damaged_outputs(folder, done) if done else []
    # on a disk of another machine there may be less
    done, before, changed = from_first((done, before, changed))
    if done and not changed:
        terminal.note("finished already, with the same inputs: skipped")
        return StageResult(folder, done["metrics"], done)
    meet()  # nothing is removed before every process has read it
    usage = Usage()
    with one_line(folder), alone_in(folder):
        refuse_or_clear(folder, before, changed, finished=bool(done), overwrite=overwrite)
        meet()
        record.begin(stage.name)
        if is_first_process():
            write_recipe(recipe)
        if writes_here():
            folder.mkdir(parents=True, exist_ok=True)
            manifest.write_json(folder / manifest.STARTED, given)
        tell_defaults(stage)
        with own_launch.whole_models(stage):
            run = stage_module(stage.stage).run
            result = run(stage, output_dir=folder, earlier=earlier, **objects)
        spent = usage.as_dict()
        result.manifest |= probed(stage, folder, earlier, objects)
        if is_first_process():
            plots.draw(stage.stage, folder, terminal.note)
            write_manifest(stage, folder, given, result, spent)
        send(folder)
        if writes_here():
            (folder / manifest.STARTED).unlink(missing_ok=True)
    if is_first_process():
        after_stage(stage, folder)
    return result


def with_earlier_rows(stage: StageRecipe, earlier: Mapping[str, Path]) -> StageRecipe:
    """The recipe with the rows that an earlier stage has made, where `dataset_name` names one."""
    folder = earlier.get(str(stage.written.get("dataset_name")))
    if folder is None or not (folder / RANKED).is_file():
        return stage
    return replace(stage, written={**stage.written, "dataset_name": str(folder / RANKED)})


def write_manifest(
    stage: StageRecipe,
    folder: Path,
    given: dict[str, Any],
    result: StageResult,
    spent: dict[str, Any],
) -> None:
    """Write `stage.json`, the last file of a stage: with it, the stage is finished."""
    result.manifest = {
        "stage": stage.stage,
        "name": stage.name,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "recipe": stage.resolved(),
        "seed": stage["seed"],
        "inputs": given,
        "outputs": manifest.outputs_of(folder),
        "metrics": result.metrics,
        **spent,
        "processes": processes(),
        "environment": manifest.environment(),
        **result.manifest,
    }
    manifest.write_json(folder / manifest.MANIFEST, result.manifest)


def write_recipe(recipe: Recipe) -> None:
    """Write `recipe.yaml`, as resolved, at the top of the run."""
    text = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    (recipe.output_dir / "recipe.yaml").write_text(text, encoding="utf-8")


def tell_defaults(stage: StageRecipe) -> None:
    """Print the defaults in force that differ from TRL's."""
    differing = stage.differing_defaults()
    if differing:
        listed = ", ".join(f"{key} {ours} ({theirs})" for key, (ours, theirs) in differing.items())
        terminal.note(f"defaults that differ from TRL's (its own in brackets): {listed}")
    if idle := stage.without_effect():
        terminal.note(f"without effect, for use_peft is false: {', '.join(idle)}")


def stage_module(stage: str) -> Any:
    """The module of a stage."""
    return import_at_once(f"toolkit.stages.{stage}")
