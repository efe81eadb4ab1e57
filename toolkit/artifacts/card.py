"""The model card: what a reader needs to judge a model, to load it, and to train it once more."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from toolkit.artifacts.lineage import exam_rows, lineage, run_recipe, settings
from toolkit.artifacts.manifest import read_json
from toolkit.artifacts.outgoing import is_local, last_part, public, without_paths
from toolkit.errors import HubError

METHODS = {
    "pretrain": "pretraining", "sft": "supervised fine-tuning", "reward": "reward modelling",
    "dpo": "direct preference optimization", "grpo": "GRPO", "ppo": "PPO",
    "rank": "ranking of its own answers",
}  # fmt: skip
LOAD_ADAPTER = """from peft import {auto}
from transformers import AutoTokenizer

model = {auto}.from_pretrained("{repo}"{labels})
tokenizer = AutoTokenizer.from_pretrained("{repo}")"""
LOAD_MODEL = """from transformers import AutoTokenizer, {auto}

model = {auto}.from_pretrained("{repo}"{labels})
tokenizer = AutoTokenizer.from_pretrained("{repo}")"""


@dataclass(frozen=True)
class About:
    """What a card says that stands in no file of the model.

    Attributes:
        repo: where the model goes.
        licences: of models and data sets by their id, for those that anyone may see.
        rename: gives the name to show for a text; it hides private repositories.
    """

    repo: str
    licences: Mapping[str, str] = field(default_factory=dict)
    rename: Callable[[str], str] = lambda text: text


def model_card(folder: Path, about: About, *, trained: Path | None = None) -> str:
    """The text of a card, its metadata checked by huggingface_hub's own rules.

    Args:
        folder: the adapter or model that it describes.
        about: what is known besides.
        trained: the stage's folder, where the model is a merged copy of it.

    Raises:
        HubError: if the metadata is not what huggingface_hub accepts.
    """
    origin = trained or folder
    stages = [shown for found in lineage(origin) if (shown := without_paths(found, about.rename))]
    manifest = stages[-1] if stages else {}
    exams = [
        without_paths(row, about.rename) for row in exam_rows(origin, str(manifest.get("name")))
    ]
    adapter = _json(folder / "adapter_config.json")
    base = base_of(origin, adapter)
    data = metadata(folder, about, stages, exams, base)
    try:
        text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(
            [
                f"# {about.repo.split('/')[-1]}",
                summary(stages, adapter, public(base, about.rename)),
                *loading(about, adapter, folder, base),
                *lineage_part(stages),
                *evaluation_part(exams),
                *proof_part(manifest),
                *licence_part(about, stages, base),
                *limits_part(stages),
                *recipe_part(origin, about),
            ]
        )
        return str(ModelCard(text)).rstrip() + "\n"
    except (ValueError, yaml.YAMLError) as error:
        raise HubError(f"{folder}: its card is not valid ({error})") from error


def base_of(folder: Path, adapter: Mapping[str, Any]) -> str:
    """The base that a model was trained from, by id or path; "" where nothing says."""
    if adapter.get("base_model_name_or_path"):
        return str(adapter["base_model_name_or_path"])
    adapter = _json(folder / "adapter_config.json")
    manifest = _json(folder / "stage.json")
    named = (manifest.get("base") or {}).get("name")
    return str(adapter.get("base_model_name_or_path") or named or "")


def metadata(
    folder: Path, about: About, stages: Sequence[Any], exams: Sequence[Any], base: str
) -> ModelCardData:
    """The YAML at the top: what the Hub indexes a model by."""
    adapter = _json(folder / "adapter_config.json")
    names = [entry["dataset_name"] for stage in stages for entry in stage.get("data") or ()]
    scores = is_classifier(folder)
    own = [row for row in exams if row["stage"] == str(stages[-1].get("name"))] if stages else []
    licence = about.licences.get(base)
    kinds = [str(stage.get("stage")) for stage in stages]
    return ModelCardData(
        base_model=base if base in about.licences else None,
        base_model_relation="adapter" if adapter else "finetune",
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if scores else "text-generation",
        license=licence or None,
        datasets=list(dict.fromkeys(name for name in names if name in about.licences)) or None,
        tags=[*(["lora"] if adapter else []), *dict.fromkeys(kinds), "trl"],
        model_name=about.repo.split("/")[-1],
        eval_results=[result(row) for row in own] or None,
    )


def result(row: Mapping[str, Any]) -> EvalResult:
    """One line of an exam, as the Hub's model-index has it."""
    data = row.get("data") or {}
    return EvalResult(
        task_type="text-generation",
        dataset_type=str(data.get("dataset_name") or row["task"]),
        dataset_name=str(row["task"]),
        dataset_revision=data.get("dataset_revision"),
        metric_type="accuracy",
        metric_name=f"accuracy (mean of {row['samples']} sampled answers to {row['n']} questions)",
        metric_value=round(row["accuracy"], 4),
    )


def is_classifier(folder: Path) -> bool:
    """Whether a model gives scores in place of words."""
    if (adapter := _json(folder / "adapter_config.json")) and adapter.get("task_type"):
        return adapter["task_type"] == "SEQ_CLS"
    kinds = _json(folder / "config.json").get("architectures") or [""]
    return str(kinds[0]).endswith("ForSequenceClassification")


def summary(stages: Sequence[Any], adapter: Mapping[str, Any], base: str) -> str:
    """What this is, in one sentence."""
    what = "An adapter" if adapter else "A model"
    if adapter.get("peft_type") == "LORA":
        kind = "DoRA" if adapter.get("use_dora") else "LoRA"
        what = f"A {kind} adapter of rank {adapter.get('r')}"
    of = f" for `{base}`" if base and adapter else f" trained from `{base}`" if base else ""
    if not stages:
        return f"{what}{of}. How it was trained is not recorded."
    kinds = [METHODS.get(stage["stage"], stage["stage"]) for stage in stages]
    return f"{what}{of}: {', then '.join(kinds)}."


def loading(about: About, adapter: Mapping[str, Any], folder: Path, base: str) -> list[str]:
    """How to load it without this toolkit."""
    scores = is_classifier(folder)
    kind = "SequenceClassification" if scores else "CausalLM"
    auto = f"AutoPeftModelFor{kind}" if adapter else f"AutoModelFor{kind}"
    code = (LOAD_ADAPTER if adapter else LOAD_MODEL).format(
        auto=auto, repo=about.repo, labels=", num_labels=1" if scores else ""
    )
    part = ["## How to load it", f"```python\n{code}\n```"]
    if adapter and is_local(base):
        part.append(
            f"The base was a folder, `{last_part(base)}`, and is not part of this repository: put it "
            "where you load this adapter from, or write its place into adapter_config.json."
        )
    return part


def lineage_part(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where it comes from, stage by stage, and with which settings."""
    if not stages:
        return []
    rows = []
    for stage in stages:
        recipe, metrics = stage.get("recipe", {}), stage.get("metrics", {})
        data = [
            f"`{entry['dataset_name']}`"
            + (f" at `{entry['revision'][:12]}`" if entry.get("revision") else "")
            + f", {entry.get('split', 'train')}, {entry.get('rows', 0):,} rows"
            for entry in stage.get("data") or ()
        ]
        rows.append(
            {
                "stage": f"{stage['name']} ({stage['stage']})",
                "from": recipe.get("start_from") or base_at(stage),
                "data": "; ".join(data) or "–",
                "loss on": trained_on(stage),
                "tokens": _number(metrics.get("num_tokens")),
                "steps": _number(metrics.get("steps")),
                "seconds": _number(stage.get("seconds")),
                "device": f"{stage.get('processes', 1)} × {stage.get('device')}",
                "peak memory": f"{stage.get('peak_memory_bytes', 0) / 2**30:.1f} GiB",
            }
        )
    part = ["## How it was trained", table(rows)]
    part.append("What differs from the defaults of TRL and PEFT, and the libraries:")
    changed = []
    for stage in stages:
        libraries = stage.get("environment", {}).get("libraries", {})
        words = [f"{key} {json.dumps(value)}" for key, value in settings(stage).items()]
        changed.append(
            f"- **{stage['name']}**: {', '.join(words) or 'nothing'} (seed {stage.get('seed')}; "
            + ", ".join(f"{name} {number}" for name, number in libraries.items())
            + ")"
        )
    return [*part, "\n".join(changed)]


def base_at(stage: Mapping[str, Any]) -> str:
    """A stage's base and its commit."""
    base = stage.get("base") or {}
    name = base.get("name") or stage.get("recipe", {}).get("model_name_or_path") or "–"
    return f"{name} at {base['commit'][:12]}" if base.get("commit") else str(name)


def trained_on(stage: Mapping[str, Any]) -> str:
    """Which tokens the loss was on."""
    sequences = (stage.get("sequences") or {}).get("train") or {}
    if sequences:
        share = f"{sequences.get('trained_tokens', 0):,} of {sequences.get('tokens', 0):,} tokens"
        return f"{sequences.get('mode')} ({share} of one epoch)"
    kinds = {"reward": "pairs of answers", "dpo": "pairs of answers", "rank": "–"}
    return kinds.get(str(stage.get("stage")), "its own answers, by reward")


def evaluation_part(exams: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the exams found, beside the base."""
    if not exams:
        return []
    rows = [
        {
            "of": row["stage"],
            "task": row["task"],
            "accuracy": f"{row['accuracy']:.1%}",
            "95 % interval": f"{row['low']:.1%} – {row['high']:.1%}",
            "greedy": f"{row['greedy']:.1%}" if row.get("greedy") is not None else "–",
            "questions": row["n"],
            "answers to each": row["samples"],
        }
        for row in exams
    ]
    return ["## Evaluation", table(rows)]


def proof_part(manifest: Mapping[str, Any]) -> list[str]:
    """What was checked of the files themselves."""
    found = manifest.get("verification") or {}
    if "largest_difference" not in found:
        return []
    how = "with a fresh base" if found["verified"] == "fresh_load" else "over the base in memory"
    return [
        "## Proof",
        f"After training, these weights were loaded again from disk {how}, and compared with the model "
        f"that was trained: over {found['sequences']} sequences of {found['tokens']} tokens the "
        f"numbers differ by {found['largest_difference']:.2g} at most (allowed: "
        f"{found['tolerance']:.0e}).",
    ]


def licence_part(about: About, stages: Sequence[Any], base: str) -> list[str]:
    """The licences of the base and of every data set."""
    names = [("base", base)] if base else []
    names += [("data", e["dataset_name"]) for stage in stages for e in stage.get("data") or ()]
    rows = [
        {
            "what": what,
            "name": public(name, about.rename),
            "licence": about.licences.get(name) or "not stated: ask whoever made it",
        }
        for what, name in dict.fromkeys(names)
    ]
    return ["## Licences", table(rows)] if rows else []


def limits_part(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What it is not to be relied on for."""
    part = (
        "It knows what its base and its data know, with their errors and leanings. Nothing else than "
        "what stands under Evaluation was measured; without it, nothing was."
    )
    kinds = {stage["stage"] for stage in stages}
    if kinds & {"ppo", "grpo"}:
        part += (
            " It was trained to please a reward, which is not the same as to be right: look for "
            "answers that only look good."
        )
    return ["## Limits", part]


def recipe_part(folder: Path, about: About) -> list[str]:
    """The recipe of the whole run, with local paths cut down to their last part."""
    recipe = without_paths(run_recipe(folder), about.rename)
    recipe.pop("output_dir", None)
    if not recipe:
        return []
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return ["## Recipe", "`toolkit run recipe.yaml` with:", f"````yaml\n{text}````"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is none."""
    return read_json(path) or {}
