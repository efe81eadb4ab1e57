"""Rejection-sampling fine-tuning: a model samples answers, the right ones are learnt, and again.

Each round samples with what the round before made, and trains a copy of the start on what was right,
as stage sft would; the round that does best on held-out questions is kept.

Source:
    Zelikman et al. 2022, "STaR: Bootstrapping Reasoning With Reasoning", arXiv:2203.14465; Yuan et al.
    2023, "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models" (RFT),
    arXiv:2308.01825; Gulcehre et al. 2023, "Reinforced Self-Training (ReST) for Language Modeling",
    arXiv:2308.08998.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from toolkit.artifacts import manifest
from toolkit.artifacts.manifest import StageResult
from toolkit.data.prompts import askable
from toolkit.data.sources import Examples, load_rows
from toolkit.errors import RecipeError, TrainingError
from toolkit.evaluation.tasks import load_tasks
from toolkit.models import kept
from toolkit.recipe import StageRecipe
from toolkit.stages import rejection_round
from toolkit.stages.completions import write_lines
from toolkit.stages.examined import BASE, Examined, examined_model
from toolkit.stages.own_launch import whole_models
from toolkit.stages.prepared import starting_point
from toolkit.stages.processes import is_first_process, meet
from toolkit.stages.rank import RANKED
from toolkit.stages.ranking import Counts as Ranked
from toolkit.stages.ranking import ranking
from toolkit.stages.rejection_round import Round, part, summary
from toolkit.stages.scored import Answer, Entry, scorers
from toolkit.stages.terminal import command, note

RECORDS = {manifest.MANIFEST, manifest.STARTED, manifest.RUNNING, manifest.STATUS}
"""Files of a round's training that are about that training alone."""


def run(
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    train_dataset: Examples | None = None,
    reward_funcs: Sequence[Entry] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **objects: Any,
) -> StageResult:
    """Sample, learn and examine, round by round, and keep the best.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `start_from` and `reward_funcs`.
        train_dataset: problems to use instead of loading `dataset_name`.
        reward_funcs: functions, or what a recipe would name; their sum says what is right.
        callbacks: further ones of every round's trainer.
        **objects: nothing else: every round loads what the round before has saved.

    Raises:
        RecipeError: if there is no such model or reward, or a key is wrong.
        DataError: if a row is wrong.
        HubError: if the Hub does not give the base or the data.
        TrainingError: if the device has not enough memory, or no answer was right.
    """
    entries = reward_funcs if reward_funcs is not None else recipe["reward_funcs"] or ()
    sampling = part(recipe, "rank", set())
    check(recipe, entries, sampling, earlier, objects)
    start = starting_point(recipe, earlier)
    rows = load_rows(sampling, purpose="prompt", train_dataset=train_dataset)
    first = speaker("start" if start else BASE, start, sampling)
    rows = replace(rows, train=askable(rows.train, first.load_tokenizer(), rows.bad))
    for line in rows.notes:
        note(line)
    given = {"callbacks": callbacks} if callbacks else {}
    asked = Round(0, recipe, output_dir / "round-0", rows, first, start, entries, earlier, given)
    done, found = rounds(asked)
    best = max(done[1:], key=lambda each: each["held_out"])  # of equal ones the earliest
    result = found[best["round"] - 1]
    if is_first_process():
        take(result.output_dir, output_dir)
        write_lines(output_dir / "log.jsonl", log_of(done, found))
    meet()
    tell(done, best)
    command("learnt", str(output_dir / best["trained_on"]))
    metrics = {
        "rounds": len(done) - 1, "kept_round": best["round"],
        "held_out_start": done[0]["held_out"], "held_out": best["held_out"],
    }  # fmt: skip
    own = {"data": rows.provenance, "bad_rows": rows.bad.record(), "rounds": done}
    kept_of = {k: v for k, v in result.manifest.items() if k in OF_TRAINING}
    return StageResult(output_dir, result.metrics | metrics, kept_of | own)


def check(
    recipe: StageRecipe,
    entries: Sequence[Entry],
    sampling: StageRecipe,
    earlier: Mapping[str, Path],
    objects: Mapping[str, Any],
) -> None:
    """Refuse what would only show after the first answers.

    Raises:
        RecipeError: if there is no such reward or task, or an object that no round can take.
    """
    if objects:
        raise RecipeError(
            f"stage 'rejection' takes no {', '.join(objects)}: every round loads what the one before "
            "has saved; give model_name_or_path and train_dataset"
        )
    if not entries:
        raise RecipeError("stage 'rejection' needs reward_funcs: what says which answers are right")
    scorers(entries, sampling, earlier)
    load_tasks(recipe["tasks"], where=recipe.where.get("tasks", "tasks"))


OF_TRAINING = ("base", "sequences", "samples", "verification", "diagnoses")
"""What the manifest of the round that is kept says of the stage too."""


def speaker(name: str, place: str | Path | None, sampling: StageRecipe) -> Examined:
    """Who answers in a round, under a name that does not depend on where its folder is."""
    return examined_model(name, sampling, {name: Path(place)} if place else {})


def rounds(before: Round) -> tuple[list[dict[str, Any]], list[StageResult]]:
    """Every round until the held-out score stops rising.

    Args:
        before: what the first one begins with.

    Returns:
        What the manifest says of the start and of each round; and what each round trained.
    """
    recipe, output_dir = before.recipe, before.folder.parent
    sampling = part(recipe, "rank", set())
    with whole_models(sampling):
        scores = rejection_round.examined(recipe, before.policy, before.folder / "exam")
    done: list[dict[str, Any]] = [{"round": 0, **scores}]
    found: list[StageResult] = []
    policy = before.policy
    for number in range(1, recipe["rounds"] + 1):
        this = replace(before, number=number, folder=output_dir / f"round-{number}", policy=policy)
        with whole_models(sampling):
            right, own, counts = rejection_round.sampled(this)
        if not right:
            raise TrainingError(
                f"round {number}: none of {counts.answers:,} answers is right "
                f"({'; '.join(counts.lines()[1:])}); sample more of them (num_generations), or look "
                f"at them in {this.folder}"
            )
        rejection_round.build(this, right, counts)
        write_ranked(own, output_dir)
        for line in counts.lines():
            note(f"round {number}: {line}")
        found.append(rejection_round.trained(this))
        kept.give_back()
        policy = speaker(this.folder.name, this.adapter, sampling)
        with whole_models(sampling):
            scores = rejection_round.examined(recipe, policy, this.folder / "exam")
        best = max(each["held_out"] for each in done)
        done.append(summary(this, counts, scores))
        if scores["held_out"] <= best:
            break
    return done, found


def write_ranked(answers: Sequence[tuple[Answer, float | None]], output_dir: Path) -> None:
    """Write right and wrong answers as stage dpo and stage reward read them.

    They are those of the last round that was sampled; the same words to a problem count once.
    """
    once = {(each.key[2], each.text): (each, reward) for each, reward in reversed(answers)}
    kept_ones = [once[key] for key in reversed(once)]
    scores = {"reward": {each.key: reward for each, reward in kept_ones}}
    if is_first_process():
        ranked = ranking([each for each, _ in kept_ones], scores, Ranked())
        write_lines(output_dir / RANKED, ranked)


def take(folder: Path, output_dir: Path) -> None:
    """Copy what a round has trained to the stage's own folder."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in (*RECORDS, "log.jsonl"):
            shutil.copy2(file, output_dir / file.name)


def log_of(
    done: Sequence[Mapping[str, Any]], results: Sequence[StageResult]
) -> list[dict[str, Any]]:
    """The logs of all rounds as one, with the held-out score after each."""
    found: list[dict[str, Any]] = [scored(done[0], 0)]
    step = 0
    for each, result in zip(done[1:], results, strict=True):
        text = (result.output_dir / "log.jsonl").read_text(encoding="utf-8")
        for entry in map(json.loads, text.splitlines()):
            if "train_runtime" not in entry:
                found.append(entry | {"step": step + entry["step"], "round": each["round"]})
        step += result.metrics["steps"]
        found.append(scored(each, step))
    return found


def scored(each: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The held-out score of a round as an entry of the log."""
    solved = {"solved": each["solved"] / each["problems"]} if "solved" in each else {}
    scores = {key: each[key] for key in ("held_out", "held_out_greedy")}
    return {"step": step, "round": each["round"], **scores, **solved}


def tell(done: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> None:
    """Say how the rounds did, and which is kept."""
    words = ", ".join(f"{each['held_out']:.1%}" for each in done)
    note(
        f"held-out accuracy of the start and of each round: {words}; round {best['round']} is kept"
    )
    if best["held_out"] <= done[0]["held_out"]:
        note("warning: no round does better on the held-out questions than the start did")
