"""The model card: what a reader needs to judge a model, to load it, and to train it once more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from toolkit.artifacts.card_loading import code_of, is_classifier
from toolkit.artifacts.card_results import evaluation_part, proof_part, results
from toolkit.artifacts.card_training import METHODS, Stages, base_at, rewards_of, training_part
from toolkit.artifacts.lineage import exam_rows, line_of, lineage, run_recipe
from toolkit.artifacts.manifest import read_json
from toolkit.artifacts.markdown import code, table
from toolkit.artifacts.outgoing import is_local, last_part, public, without_paths
from toolkit.artifacts.plots import EXAM
from toolkit.errors import HubError

UNKNOWN = "not stated: ask whoever made it"


@dataclass(frozen=True)
class About:
    """What a card says that stands in no file of the model.

    Attributes:
        repo: where the model goes.
        licences: of models and data sets by their id, for those that anyone may see.
        rename: gives the name to show for a text; it hides private repositories.
        pictures: the paths of those that are pushed with it.
    """

    repo: str
    licences: Mapping[str, str] = field(default_factory=dict)
    rename: Callable[[str], str] = lambda text: text
    pictures: Sequence[str] = ()


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
    stages = [without_paths(found, about.rename) for found in lineage(origin)]
    manifest = stages[-1] if stages else {}
    exams = exams_of(origin, about)
    adapter = read_json(folder / "adapter_config.json") or {}
    base = base_of(origin, adapter)
    curves, exam = pictures_of(about)
    parts = [
        f"# {about.repo.split('/')[-1]}",
        summary(stages, adapter, public(base, about.rename)),
        *loading_part(about, adapter, folder, base),
        *training_part(stages, curves),
        *evaluation_part(manifest, exams, exam),
        *proof_part(manifest),
        *limits_part(stages, folder),
        *licence_part(about, stages, base),
        *recipe_part(origin, about),
    ]
    try:
        data = metadata(folder, about, stages, exams, base)
        text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts)
        return str(ModelCard(text)).rstrip() + "\n"
    except (ValueError, yaml.YAMLError) as error:
        raise HubError(f"{folder}: its card is not valid ({error})") from error


def exams_of(folder: Path, about: About) -> list[dict[str, Any]]:
    """What was found of a stage and of what it was trained from, as others may read it."""
    names = [str(stage.get("name")) for stage in line_of(lineage(folder))]
    return [without_paths(row, about.rename) for row in exam_rows(folder, names)]


def base_of(folder: Path, adapter: Mapping[str, Any]) -> str:
    """The base that a model was trained from, by id or path; "" where nothing says."""
    if adapter.get("base_model_name_or_path"):
        return str(adapter["base_model_name_or_path"])
    adapter = read_json(folder / "adapter_config.json") or {}
    manifest = read_json(folder / "stage.json") or {}
    named = (manifest.get("base") or {}).get("name")
    return str(adapter.get("base_model_name_or_path") or named or "")


def pictures_of(about: About) -> tuple[dict[str, str], dict[str, str]]:
    """The pictures of the training and those of the exam, each with what it shows."""
    training = {
        path: "Curves of its training, over the steps" for path in about.pictures if path != EXAM
    }
    words = "Right answers with their 95 % intervals, of each model and task"
    return training, {path: words for path in about.pictures if path == EXAM}


def metadata(
    folder: Path, about: About, stages: Stages, exams: Sequence[Any], base: str
) -> ModelCardData:
    """The YAML at the top: what the Hub indexes a model by."""
    is_adapter = (folder / "adapter_config.json").is_file()
    names = [entry["dataset_name"] for stage in stages for entry in stage.get("data") or ()]
    kinds = [str(stage.get("stage")) for stage in line_of(stages)]
    scores = is_classifier(folder)
    return ModelCardData(
        base_model=base if base in about.licences else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if base else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification" if scores else "text-generation",
        license=about.licences.get(base) or None,
        datasets=list(dict.fromkeys(name for name in names if name in about.licences)) or None,
        tags=[*(["lora"] if is_adapter else []), *dict.fromkeys(kinds), "trl"],
        model_name=about.repo.split("/")[-1],
        eval_results=results(stages[-1] if stages else {}, exams) or None,
    )


def summary(stages: Stages, adapter: Mapping[str, Any], base: str) -> str:
    """What this is, in one sentence."""
    what = "An adapter" if adapter else "A model"
    if adapter.get("peft_type") == "LORA":
        kind = "DoRA" if adapter.get("use_dora") else "LoRA"
        what = f"A {kind} adapter of rank {adapter.get('r')}"
    line = line_of(stages)
    named = base_at(stages[-1]) if stages and (stages[-1].get("base") or {}).get("name") else ""
    base = named or (code(base) if base else "")
    of = f" for {base}" if base and adapter else f" trained from {base}" if base else ""
    if not line:
        return f"{what}{of}. How it was trained is not recorded."
    kinds = []
    for stage in line:
        judges = " and ".join(map(code, rewards_of(stage)))
        towards = f" towards {judges}" if judges and stage["stage"] in ("grpo", "ppo") else ""
        kinds.append(METHODS.get(stage["stage"], stage["stage"]) + towards)
    return f"{what}{of}: {', then '.join(kinds)}."


def loading_part(about: About, adapter: Mapping[str, Any], folder: Path, base: str) -> list[str]:
    """How to load it without this toolkit."""
    python = code_of(folder, about.repo, public(base, about.rename))
    part = ["## How to use it", f"```python\n{python}\n```"]
    if adapter and is_local(base):
        part.append(
            f"The base was a folder, `{last_part(base)}`, and is not part of this repository: put it "
            "where you load this adapter from, or write its place into adapter_config.json."
        )
    if (folder / "value").is_dir():
        part.append(
            "The folder `value` holds PPO's critic: an adapter that training on needs, and generating "
            "does not."
        )
    return part


def limits_part(stages: Stages, folder: Path) -> list[str]:
    """What it is not to be relied on for."""
    part = (
        "It knows what its base and its data know, with their errors and leanings. Nothing else than "
        "what stands under Evaluation was measured; without it, nothing was."
    )
    kinds = {stage["stage"] for stage in line_of(stages)}
    if kinds & {"ppo", "grpo"}:
        part += (
            " It was trained to please a reward, which is not the same as to be right: look for "
            "answers that only look good."
        )
    if is_classifier(folder):
        part += (
            " Its scores compare answers to one prompt; between prompts, and of answers unlike those "
            "that it was trained on, they say little."
        )
    return ["## Limits", part]


def licence_part(about: About, stages: Stages, base: str) -> list[str]:
    """The licences of the base and of every data set."""
    names = [("base", base)] if base else []
    names += [
        ("data", entry["dataset_name"])
        for stage in stages
        for entry in stage.get("data") or ()
        if not entry.get("made_by")
    ]
    rows = [
        {
            "what": what,
            "name": code(public(name, about.rename)),
            "licence": about.licences.get(name) or UNKNOWN,
        }
        for what, name in dict.fromkeys(names)
    ]
    return ["## Licences", table(rows)] if rows else []


def recipe_part(folder: Path, about: About) -> list[str]:
    """The recipe of the whole run, with local paths cut down to their last part."""
    recipe = without_paths(run_recipe(folder), about.rename)
    recipe.pop("output_dir", None)
    if not recipe:
        return []
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return [
        "## Recipe",
        "All of the above again, with `toolkit run recipe.yaml`; of local files, only the names "
        "stand here.",
        f"<details>\n<summary>recipe.yaml</summary>\n\n````yaml\n{text}````\n\n</details>",
    ]
