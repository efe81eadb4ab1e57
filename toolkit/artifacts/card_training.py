"""What a model card says of the training: each stage's data, loss, cost and settings."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.artifacts.lineage import settings
from toolkit.artifacts.markdown import code, duration, gibibytes, table, whole

METHODS = {
    "pretrain": "pretraining", "sft": "supervised fine-tuning", "reward": "reward modelling",
    "dpo": "direct preference optimization", "grpo": "GRPO", "ppo": "PPO",
    "rank": "ranking of its own answers", "rejection": "rejection-sampling fine-tuning",
}  # fmt: skip
Stages = Sequence[Mapping[str, Any]]


def training_part(stages: Stages, pictures: Mapping[str, str]) -> list[str]:
    """Where a model comes from, stage by stage, oldest first.

    Args:
        stages: the manifests of its lineage.
        pictures: their paths in the repository by what they show.
    """
    if not stages:
        return []
    part = ["## How it was trained", table([row_of(stage) for stage in stages])]
    part.append(table([cost_of(stage) for stage in stages]))
    part += [f"![{alt}]({path})" for path, alt in pictures.items()]
    lines = [f"- **{stage['name']}**: {', '.join(changed(stage))}" for stage in stages]
    part.append("Settings that differ from the defaults of TRL and PEFT:\n\n" + "\n".join(lines))
    return [*part, libraries(stages)]


def row_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage was trained on."""
    return {
        "stage": stage["name"],
        "method": METHODS.get(stage["stage"], stage["stage"]),
        "starts from": started_from(stage),
        "data": "; ".join(map(rows_of, stage.get("data") or ())) or "–",
        "loss on": trained_on(stage),
    }


def started_from(stage: Mapping[str, Any]) -> str:
    """The stage or the adapter that one continued, at its revision; else its base."""
    recipe = stage.get("recipe", {})
    if not recipe.get("start_from"):
        return base_at(stage)
    at = f" at `{recipe['start_from_revision']}`" if recipe.get("start_from_revision") else ""
    return f"{recipe['start_from']}{at}"


def cost_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage took."""
    metrics = stage.get("metrics", {})
    return {
        "stage": stage["name"],
        "steps": whole(metrics.get("steps")),
        "tokens": whole(metrics.get("num_tokens")),
        "time": duration(stage.get("seconds")),
        "device": f"{stage.get('processes', 1)} × {stage.get('device')}",
        "peak memory": gibibytes(stage.get("peak_memory_bytes")),
    }


def rows_of(entry: Mapping[str, Any]) -> str:
    """A data set at its commit, and how much of it."""
    at = f" at {code(entry['revision'][:12])}" if entry.get("revision") else ""
    maker = f" of stage {entry['made_by']}" if entry.get("made_by") else ""
    number = entry.get("rows", 0)
    split = entry.get("split", "train")
    return f"{code(entry['dataset_name'])}{at}{maker}, {split}, {number:,} rows"


def base_at(stage: Mapping[str, Any]) -> str:
    """A stage's base and its commit."""
    base = stage.get("base") or {}
    name = base.get("name") or stage.get("recipe", {}).get("model_name_or_path")
    if not name:
        return "–"
    return code(name) + (f" at {code(base['commit'][:12])}" if base.get("commit") else "")


def trained_on(stage: Mapping[str, Any]) -> str:
    """Which tokens the loss was on."""
    sequences = (stage.get("sequences") or {}).get("train") or {}
    pairs = (stage.get("pairs") or {}).get("train") or {}
    kind = stage.get("stage")
    if sequences:
        share = f"{sequences.get('trained_tokens', 0):,} of {sequences.get('tokens', 0):,} tokens"
        return f"{sequences.get('mode')} ({share} of one epoch)"
    if kind in ("reward", "dpo"):
        number = f": {pairs['pairs']:,} pairs, {pairs['prompts']:,} prompts" if pairs else ""
        return f"which of two answers is better{number}"
    if kind in ("grpo", "ppo"):
        return f"its own answers, by {', '.join(map(code, rewards_of(stage))) or 'a reward'}"
    return "nothing" if kind == "rank" else "every token"


def rewards_of(stage: Mapping[str, Any]) -> list[str]:
    """The rewards of a stage, by name."""
    entries = stage.get("recipe", {}).get("reward_funcs") or ()
    return [str(each.get("name") if isinstance(each, Mapping) else each) for each in entries]


def changed(stage: Mapping[str, Any]) -> list[str]:
    """The seed, and every setting that is not the default."""
    written = {"seed": stage.get("seed"), **settings(stage)}
    return [code(f"{key}: {shown(value)}") for key, value in written.items()]


def shown(value: Any) -> str:
    """A value as YAML reads it, in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def libraries(stages: Stages) -> str:
    """The versions that trained it; stage by stage where they differ."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        known = stage.get("environment", {})
        versions = [f"{name} {number}" for name, number in known.get("libraries", {}).items()]
        python = f"Python {known['python']} on {known['platform']}" if "python" in known else ""
        found.setdefault(", ".join(filter(None, [python, *versions])), []).append(stage["name"])
    if len(found) == 1:
        return f"With {next(iter(found)) or 'libraries that are not recorded'}."
    return "\n".join(f"- {', '.join(names)}: with {words}" for words, names in found.items())
