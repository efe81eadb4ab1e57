"""What the page says of each stage: data, cost, curves, scores, which tokens carry loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.artifacts.card_training import changed, rewards_of, started_from
from toolkit.artifacts.markdown import NONE, duration, gibibytes, whole
from toolkit.artifacts.outgoing import is_local, last_part
from toolkit.report.curves import against, stage_curves
from toolkit.report.run_folder import FINISHED, Run, Stage
from toolkit.report.scores import spreads
from toolkit.report.tree import METHOD
from toolkit.report.words import number, points, shown

SAMPLES = "samples"
"""The manifest's key for rows as they were trained: `source`, `row`, and `spans` of a text and
whether it carries loss. A push leaves lists of this name out."""
MEASURED = {
    "train_loss": "mean loss", "eval_loss": "held-out loss", "reward": "reward at the end",
    "kl": "KL at the end", "completions/mean_length": "tokens of a completion",
    "value/explained_variance": "explained by the critic",
}  # fmt: skip


def section_of(run: Run, stage: Stage) -> dict[str, Any]:
    """Everything about one stage, as the template shows it."""
    manifest = stage.manifest
    return {
        "name": stage.name,
        "kind": stage.kind,
        "method": METHOD.get(stage.kind, stage.kind),
        "state": stage.state,
        "from": origin(stage),
        "rewards": [shown(name, 120) for name in rewards_of({"recipe": stage.recipe})],
        "cost": cost(stage),
        "measured": measured(stage),
        "data": [data_of(entry) for entry in manifest.get("data") or ()],
        "lines": account(manifest),
        "curves": stage_curves(stage.kind, stage.entries),
        "against": against(stage.entries) if stage.kind in ("ppo", "grpo") else [],
        "spreads": spreads(run, stage),
        "samples": [sample_of(each) for each in manifest.get(SAMPLES) or () if "spans" in each],
        "proof": proof_of(manifest),
        "guard": guard_of(manifest),
        "settings": [word.strip("` ") for word in changed({"recipe": stage.recipe, **manifest})],
    }


def origin(stage: Stage) -> str:
    """What a stage started from, without a folder of this machine."""
    name = started_from({**stage.manifest, "recipe": stage.recipe}).replace("`", "")
    if stage.kind == "evaluate":
        return ", ".join(map(str, stage.recipe.get("of") or ("base", "every trained stage")))
    return last_part(name) if is_local(name) else name


def cost(stage: Stage) -> dict[str, str]:
    """Steps, tokens, time and memory; a dash for what is not known."""
    manifest = stage.manifest
    tokens = manifest.get("metrics", {}).get("num_tokens")
    many, device = manifest.get("processes", 1), manifest.get("device", NONE)
    return {
        "steps": f"{stage.steps:,}" if stage.steps else NONE,
        "tokens": whole(tokens),
        "time": duration(manifest.get("seconds")),
        "memory": gibibytes(manifest.get("peak_memory_bytes")),
        "device": f"{many} × {device}" if many != 1 else str(device),
    }


def measured(stage: Stage) -> list[tuple[str, str]]:
    """The few numbers that a stage ended with."""
    metrics = stage.manifest.get("metrics", {})
    if stage.kind not in ("ppo", "grpo"):
        metrics = {key: metrics[key] for key in ("train_loss", "eval_loss") if key in metrics}
    found = [
        (word, number(metrics[key]))
        for key, word in MEASURED.items()
        if isinstance(metrics.get(key), int | float) and (key != "train_loss" or len(metrics) < 3)
    ]
    pairs = stage.manifest.get("metrics", {}).get("pairs")
    if isinstance(pairs, Mapping) and {"accuracy", "low", "high"} <= set(pairs):
        ends = f"[{points(pairs['low'])}, {points(pairs['high'])}]"
        found.append(("held-out pairs ranked right", f"{points(pairs['accuracy'])} % {ends}"))
    return found


def data_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """A data set: its name without a folder, its commit, its rows."""
    name = str(entry.get("dataset_name"))
    return {
        "name": Path(name).name if is_local(name) else name,
        "at": str(entry.get("revision") or "")[:12],
        "split": str(entry.get("split", "train")),
        "rows": whole(entry.get("rows")),
    }


def account(manifest: Mapping[str, Any]) -> list[str]:
    """What became of the rows, in the words in which it was told when they were read."""
    from toolkit.data.pair_report import PairReport  # they load numpy, which a start can do without
    from toolkit.data.sequence_report import SequenceReport

    lines: list[str] = []
    for key, kind in (("sequences", SequenceReport), ("pairs", PairReport)):
        for split, found in (manifest.get(key) or {}).items():
            fields = dataclasses.fields(kind)
            needed = {field.name for field in fields if field.default is dataclasses.MISSING}
            needed -= {"named", "first", "left_out"}
            if isinstance(found, Mapping) and needed <= found.keys():
                known = {field.name: found[field.name] for field in fields if field.name in found}
                said = kind(**known).lines()
                lines += said if split == "train" else [f"held out: {line}" for line in said]
    prompts = manifest.get("prompts") or {}
    if prompts.get("number"):
        lines.append(
            f"{prompts['number']:,} prompts; the longest has {prompts['longest']:,} tokens"
        )
    return lines + ranked_lines(manifest) + round_lines(manifest)


def ranked_lines(manifest: Mapping[str, Any]) -> list[str]:
    """How many answers were ranked, and what was left out."""
    metrics = manifest.get("metrics", {})
    if manifest.get("stage") != "rank":
        return []
    words = {
        "repeated": "answers merged with one of the same words",
        "unstopped": "answers left out: cut off at max_completion_length",
        "unscored": "answers left out: a reward gave no score",
        "alone": "prompts left out: fewer than two different answers",
        "tied": "prompts left out: all answers have the same score",
    }
    first = (
        f"{whole(metrics.get('ranked'))} of {whole(metrics.get('prompts'))} prompts ranked, with "
        f"{whole(metrics.get('written'))} of {whole(metrics.get('answers'))} answers"
    )
    return [first, *(f"{metrics[key]:,} {what}" for key, what in words.items() if metrics.get(key))]


def round_lines(manifest: Mapping[str, Any]) -> list[str]:
    """How each round of rejection sampling did on the held-out questions, and what it learnt."""
    metrics = manifest.get("metrics", {})
    found = []
    for each in manifest.get("rounds") or ():
        line = f"round {each['round']}: " if each["round"] else "start: "
        line += f"{points(each['held_out'])} % right on the held-out questions"
        if each["round"]:
            line += (
                f"; {each['solved']:,} of {each['problems']:,} problems answered right before it, "
                f"{each['rationalised']:,} more with a hint, {each['traces']:,} answers learnt"
            )
        kept = each["round"] == metrics.get("kept_round")
        found.append(f"{line}; kept" if kept else line)
    return found


def sample_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was trained."""
    source = str(sample.get("source", ""))
    return {
        "where": f"{Path(source).name}, row {sample.get('row')}" if source else "",
        "tokens": sample.get("tokens"),
        "trained": sample.get("trained"),
        "spans": [(shown(text, 2000), bool(is_trained)) for text, is_trained in sample["spans"]],
    }


def guard_of(manifest: Mapping[str, Any]) -> str:
    """What the guard against a gamed reward followed, and what became of it; "" without one."""
    found = manifest.get("guard")
    if not isinstance(found, Mapping) or not found.get("rollouts"):
        return ""
    golds = ", ".join(map(str, found.get("gold_funcs") or ())) or "no gold check"
    said = f"Guard ({found.get('guard')}, {golds}): {found['rollouts']:,} rollouts followed"
    first, last = found.get("first") or {}, found.get("last") or {}
    for key in ("reward", "gold"):
        if first.get(key) is not None and last.get(key) is not None:
            said += f"; {key} {number(first[key])} → {number(last[key])}"
    if found.get("took"):
        said += (
            f"; stopped at step {found.get('stopped_at')}, the result is {found['took']}, the best by "
            f"gold ({number(found.get('gold'))})"
        )
    return said + "."


def proof_of(manifest: Mapping[str, Any]) -> str:
    """What was checked of the files, in a sentence; "" where nothing was."""
    found = manifest.get("verification") or {}
    if "largest_difference" not in found:
        return ""
    how = "with a fresh base" if found["verified"] == "fresh_load" else "over the base in memory"
    return (
        f"Loaded again from disk {how}: of {found['sequences']} sequences, {found['tokens']:,} numbers "
        f"differ by {found['largest_difference']:.2g} at most (allowed: {found['tolerance']:.0e})."
    )


def totals(stages: Sequence[Stage]) -> dict[str, str]:
    """Time and memory of a whole run, as far as it is finished."""
    done = [stage.manifest for stage in stages if stage.state == FINISHED]
    seconds = sum(each.get("seconds") or 0 for each in done)
    memory = max((each.get("peak_memory_bytes") or 0 for each in done), default=0)
    ended = max((str(each.get("finished_at", "")) for each in done), default="")
    return {
        "time": duration(seconds) if done else NONE,
        "memory": gibibytes(memory),
        "device": ", ".join(dict.fromkeys(str(each.get("device")) for each in done)) or NONE,
        "stages": f"{len(done)} of {len(stages)}",
        "finished": ended.replace("T", " ").removesuffix("Z") + " UTC" if ended else "",
    }
