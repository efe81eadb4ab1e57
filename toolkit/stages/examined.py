"""What an exam examines: the base, what earlier stages made of it, and any other model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifacts.inputs import model_identity, weights_digest
from toolkit.artifacts.manifest import MANIFEST, digest_of, read_json
from toolkit.errors import RecipeError, TrainingError
from toolkit.models.load import (
    WEIGHTS,
    adapter_config,
    base_arguments,
    check_model_path,
    load_adapter,
    load_base,
    load_tokenizer,
    remote_code,
)
from toolkit.recipe import StageRecipe
from toolkit.stages.processes import device

BASE = "base"


@dataclass(frozen=True)
class Examined:
    """One model of the exam, before its weights are loaded.

    Attributes:
        name: as `of` names it.
        place: its folder or Hub id.
        adapter: its adapter_config.json; None for a full model.
        identity: a digest of the weights and of how they are loaded.
        recipe: names the model, or the adapter's base, and how it is loaded.
        model: in memory already, if Python gave it.
        tokenizer: likewise.
        start_from: the stage whose adapter it was trained on from, as its manifest says.
    """

    name: str
    place: str
    adapter: dict[str, Any] | None
    identity: str
    recipe: StageRecipe
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    start_from: str | None = None

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that was saved with the model."""
        if self.tokenizer is not None:
            return self.tokenizer
        return load_tokenizer(self.place, **({} if self.adapter else remote_code(self.recipe)))

    def load_model(self) -> Any:
        """The model on this process's device; an adapter is put over its own base.

        Raises:
            TrainingError: if the device has not enough memory.
        """
        if self.model is not None:
            return self.model
        try:
            if self.adapter is None:
                model: Any = load_base(self.recipe)
            else:
                own = adapter_arguments(self.recipe)
                model = load_adapter(self.place, self.adapter, lent=True, **own)
            return model if getattr(model, "hf_device_map", None) else model.to(device())
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{self.place}: the device has not enough memory to load it "
                f"({str(error).splitlines()[0]}); load it in 4-bit with load_in_4bit: true"
            ) from error


def examined_models(
    recipe: StageRecipe,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Examined]:
    """Every entry of `of`, checked; by default the base and what the earlier stages trained.

    Args:
        recipe: of stage evaluate.
        earlier: folders of finished stages, by name.
        model: the base, if Python gave it.
        tokenizer: its tokenizer.

    Raises:
        RecipeError: if an entry names no model.
        HubError: if the Hub does not have it or does not give it.
    """
    trained = [name for name, folder in earlier.items() if holds_answers(folder)]
    names = dict.fromkeys(recipe["of"] or [BASE, *trained])
    return [examined_model(name, recipe, earlier, model, tokenizer) for name in names]


def examined_model(
    name: str,
    recipe: StageRecipe,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Examined:
    """One model by its name: the base, an earlier stage, a folder or a Hub id; checked.

    Args:
        name: which.
        recipe: names the base, and how models are loaded.
        earlier: folders of finished stages, by name.
        model: the base, if Python gave it.
        tokenizer: its tokenizer.

    Raises:
        RecipeError: if there is no such model.
        HubError: if the Hub does not have it or does not give it.
    """
    if name == BASE and model is not None:
        place = str(recipe["model_name_or_path"] or model.name_or_path)
        if tokenizer is None and not place:
            raise RecipeError("model was given without its tokenizer: give processing_class too")
        return Examined(name, place, None, weights_digest(model), recipe, model, tokenizer)
    place = str(earlier.get(name, recipe["model_name_or_path"] if name == BASE else name))
    check_model_path(place)
    adapter = adapter_config(place)
    if adapter and adapter.get("task_type") == "SEQ_CLS":
        raise RecipeError(
            f"{name}: a reward adapter scores answers and writes none; name it in reward_funcs, as "
            f"adapter:{name}"
        )
    own = loaded_like(recipe, adapter["base_model_name_or_path"] if adapter else place)
    identity = digest_of([place_identity(place, adapter), own.arguments("ModelConfig")])
    manifest = read_json(Path(place).expanduser() / MANIFEST) or {}
    return Examined(
        name, place, adapter, identity, own,
        tokenizer=tokenizer if name == BASE else None,
        start_from=manifest.get("recipe", {}).get("start_from"),
    )  # fmt: skip


def holds_answers(folder: Path) -> bool:
    """Whether a stage's folder holds a model or an adapter that writes, not one that scores."""
    if not any((folder / name).is_file() for name in WEIGHTS):
        return False
    return (read_json(folder / MANIFEST) or {}).get("stage") != "reward"


def loaded_like(recipe: StageRecipe, name: str) -> StageRecipe:
    """The recipe with another model: loaded like the base, but its revision and code are its own."""
    if name == recipe["model_name_or_path"]:
        return recipe
    refers = {"model_revision", "trust_remote_code"}
    written = {key: value for key, value in recipe.written.items() if key not in refers}
    return replace(recipe, written=written | {"model_name_or_path": name})


def adapter_arguments(recipe: StageRecipe) -> dict[str, Any]:
    """What an adapter's base is loaded with; its revision stands in the adapter's own config."""
    arguments = base_arguments(recipe)
    revision = arguments.pop("revision")
    if arguments["trust_remote_code"]:
        arguments["code_revision"] = revision  # no other code than the one that is trusted
    return arguments


def place_identity(place: str, adapter: Mapping[str, Any] | None) -> list[str]:
    """What is in a folder or behind a Hub id, and in the base below an adapter."""
    base = [model_identity(str(adapter["base_model_name_or_path"]))] if adapter else []
    return [model_identity(place), *base]
