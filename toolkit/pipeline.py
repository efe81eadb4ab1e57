"""Stages in order: skip what is finished, resume what is not, hand each adapter to the next."""

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from toolkit.artifacts import allowed, inputs, manifest, plots
from toolkit.artifacts.inside import check_inside
from toolkit.artifacts.manifest import RunResult, StageResult
from toolkit.errors import HubError, RecipeError
from toolkit.recipe import Recipe, StageRecipe, load_recipe, recipe_from_keywords
from toolkit.recipe.keys import TRAINING
from toolkit.stages import pushing, terminal
from toolkit.stages.failures import one_line
from toolkit.stages.machines import look_at_disks, send
from toolkit.stages.next_steps import after_run, after_stage
from toolkit.stages.processes import (
    from_first,
    is_first_process,
    join,
    meet,
    processes,
    writes_here,
)
from toolkit.stages.resources import Usage
from toolkit.stages.run_folder import alone_in, refuse_or_clear
from toolkit.stages.run_record import RunRecord, recorded
from toolkit.stages.signals import stopping_at_once
from toolkit.stages.trackers import keep_private

REPORT = "report.json"
RANKED = "ranked.jsonl"
PATIENCE_S = 1800  # for another process, where no stage has a ddp_timeout: TRL's own default
OBJECTS = ("model", "processing_class", "train_dataset", "eval_dataset", "callbacks")
"""What Python may give to a stage in place of a name, and below what it alone can give."""
OF_TRAINING = ("trainer_class",)
OF_ROLLOUTS = ("reward_funcs", "tools", "environment_factory", "rollout_func")


def run(
    recipe: str | Path,
    *,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    fresh_optimizer: bool = False,
    **overrides: Any,
) -> RunResult:
    """Run a recipe file: one stage or a pipeline.

    Args:
        recipe: the YAML file.
        overwrite: rerun finished stages whose inputs changed, and all that follows from them.
        allow_change: recipe keys, or words of `manifest.INPUTS`, with which a stage that was
            interrupted goes on although they are not what they were.
        fresh_optimizer: go on from a checkpoint without its optimizer.
        **overrides: recipe keys that win over the file, for every stage that knows them.

    Returns:
        The result of every stage.

    Raises:
        ToolkitError: one of its children; the message says what to do.
    """
    asked = allowed.asked_for(
        load_recipe(recipe, keywords=overrides), allow_change, fresh_optimizer=fresh_optimizer
    )
    return run_recipe(asked, overwrite=overwrite)


def pretrain(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Pretraining of a small base; keywords are recipe keys, or `train_dataset=` and so on."""
    return run_stage("pretrain", overwrite=overwrite, **keys)


def sft(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Supervised fine-tuning; keywords are recipe keys, or `model=`, `train_dataset=` and so on."""
    return run_stage("sft", overwrite=overwrite, **keys)


def reward(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """A reward model from ranked answers; keywords are recipe keys, or `train_dataset=` and so on."""
    return run_stage("reward", overwrite=overwrite, **keys)


def dpo(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Direct preference optimization; keywords are recipe keys, or `train_dataset=` and so on."""
    return run_stage("dpo", overwrite=overwrite, **keys)


def grpo(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """GRPO; keywords are recipe keys, `train_dataset=`, or functions in `reward_funcs=[…]`."""
    return run_stage("grpo", overwrite=overwrite, **keys)


def ppo(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """PPO with a value adapter; keywords as of `grpo`."""
    return run_stage("ppo", overwrite=overwrite, **keys)


def rank(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Sample answers and rank them by rewards: preferences on policy; keywords are recipe keys."""
    return run_stage("rank", overwrite=overwrite, **keys)


def evaluate(*, overwrite: bool = False, **keys: Any) -> StageResult:
    """Examine a base and what was trained from it; keywords are recipe keys, or `model=`."""
    return run_stage("evaluate", overwrite=overwrite, **keys)


def run_stage(
    stage: str,
    *,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    fresh_optimizer: bool = False,
    **keys: Any,
) -> StageResult:
    """Run one stage from keywords; the others as of `run`."""
    objects, recipe = given_to(stage, keys)
    recipe = allowed.asked_for(recipe, allow_change, fresh_optimizer=fresh_optimizer)
    result = run_recipe(recipe, overwrite=overwrite, objects=objects)
    return result.stages[recipe.stages[0].name]


def given_to(stage: str, keys: Mapping[str, Any]) -> tuple[dict[str, Any], Recipe]:
    """What Python gave to a stage: objects by name, and a recipe of the rest.

    Raises:
        RecipeError: if `callbacks` is no list.
    """
    keys = dict(keys)
    if isinstance(keys.get("model"), str | Path):  # TRL's word for model_name_or_path
        keys["model_name_or_path"] = str(keys.pop("model"))
    names = OBJECTS + (OF_TRAINING if stage in TRAINING else ())
    names += OF_ROLLOUTS if stage in ("grpo", "ppo") else ()
    names += ("reward_funcs",) if stage in ("rank", "evaluate") else ()
    objects = {
        key: keys.pop(key)
        for key in names
        if keys.get(key) is not None and not is_written_out(key, keys[key])
    }
    if callable(objects.get("reward_funcs")):
        objects["reward_funcs"] = [objects["reward_funcs"]]
    if not isinstance(objects.get("callbacks", []), list | tuple):
        found = type(objects["callbacks"]).__name__
        raise RecipeError(f"callbacks: expected a list, found {found}; write callbacks=[…]")
    return objects, recipe_from_keywords(stage, given=objects, **keys)


def is_written_out(key: str, value: Any) -> bool:
    """Whether Python gave in words what a recipe could say too, for the keys that allow both."""
    if key == "reward_funcs" and isinstance(value, list | tuple):
        return all(isinstance(entry, str | Mapping) for entry in value)
    return key in ("trainer_class", "reward_funcs") and isinstance(value, str)


def build(stage: str, **keys: Any) -> Any:
    """The configured TRL trainer of a training stage, before `.train()`.

    Args:
        stage: for example "sft".
        **keys: recipe keys, or objects: `model`, `processing_class`, `train_dataset`,
            `eval_dataset`, `callbacks`.

    Raises:
        RecipeError: if the stage trains nothing.
    """
    objects, recipe = given_to(stage, keys)
    module = stage_module(stage)
    if not hasattr(module, "build"):
        raise RecipeError(f"stage {stage!r} trains nothing, so there is no trainer to build")
    (only,) = recipe.stages
    trainer = module.build(only, output_dir=recipe.output_dir, earlier={}, **objects)
    if pushing.pushes(only):
        terminal.note(
            "push_to_hub: a trainer from toolkit.build pushes nothing; run the stage, or push"
        )
    keep_private(trainer, only)
    return trainer


def run_recipe(
    recipe: Recipe, *, overwrite: bool = False, objects: Mapping[str, Any] | None = None
) -> RunResult:
    """Run the stages of a resolved recipe in order.

    Args:
        recipe: the resolved recipe.
        overwrite: rerun what changed, and what follows from it.
        objects: what Python gave in place of names, for a recipe of one stage.
    """
    terminal.hide_library_bars()
    join(max(stage.get("ddp_timeout") or PATIENCE_S for stage in recipe.stages))
    with stopping_at_once(), recorded(recipe.output_dir) as record, one_line(recipe.output_dir):
        look_at_disks(recipe)
        recipe = pushing.with_repositories(recipe)
        return run_all(recipe, record, overwrite=overwrite, objects=objects or {})


def run_all(
    recipe: Recipe, record: RunRecord, *, overwrite: bool, objects: Mapping[str, Any]
) -> RunResult:
    """Run the stages and push what is to be pushed; arguments and errors as of `run_recipe`."""
    result = RunResult(recipe.output_dir)
    earlier: dict[str, Path] = {}
    unpushed: dict[str, str] = {}
    for stage in recipe.stages:
        folder = recipe.output_dir / stage.name if recipe.is_pipeline else recipe.output_dir
        check_inside(recipe.output_dir, folder)
        result.stages[stage.name] = run_one(
            recipe, stage, folder, earlier, record, overwrite=overwrite, objects=objects
        )
        earlier[stage.name] = folder
        if processes() == 1:
            push(stage, folder, unpushed)
        meet()
    if recipe.is_pipeline and is_first_process():
        gather_reports(recipe)
        after_run(recipe)
    for stage in pushed_last(recipe):
        push(stage, earlier[stage.name], unpushed)
    if unpushed:
        raise HubError("; ".join(unpushed.values()))
    return result


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
    before = done["inputs"] if done else manifest.read_json(folder / manifest.STARTED)
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
        result = stage_module(stage.stage).run(stage, output_dir=folder, earlier=earlier, **objects)
        if is_first_process():
            plots.draw(stage.stage, folder, terminal.note)
            write_manifest(stage, folder, given, result, usage)
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
    stage: StageRecipe, folder: Path, given: dict[str, Any], result: StageResult, usage: Usage
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
        **usage.as_dict(),
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
    return importlib.import_module(f"toolkit.stages.{stage}")
