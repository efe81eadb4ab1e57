"""A folder with an adapter or a model, and what it says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from safetensors import SafetensorError, safe_open

from toolkit.artifacts import manifest, proof_file
from toolkit.errors import TrainingError
from toolkit.models.load import adapter_config

MODEL = ("adapter_config.json", "config.json")
HEADS = tuple(f".{name}." for name in SEQ_CLS_HEAD_NAMES)


@dataclass(frozen=True)
class Artefact:
    """A folder, and what it says of itself.

    Attributes:
        directory: the folder.
        adapter: its adapter_config.json; None for a whole model.
        stage: its stage.json; empty for what others have made.
        recipe: what the stage was asked; empty where that is not known.
        remembered: what it must give, from proof.json; empty where that is not there.
    """

    directory: Path
    adapter: dict[str, Any] | None
    stage: dict[str, Any]
    recipe: dict[str, Any]
    remembered: dict[str, Any]

    @property
    def base(self) -> str:
        """The folder or Hub id of the base below the adapter."""
        return str((self.adapter or {}).get("base_model_name_or_path") or "")

    @property
    def is_ours(self) -> bool:
        """Whether a stage here has written it."""
        return bool(self.stage or self.remembered)


def artefact_in(directory: Path) -> Artefact:
    """Read what a folder says of itself; of a stage that was not finished, from `started.json`."""
    stage = manifest.read_json(directory / manifest.MANIFEST) or {}
    started = (manifest.read_json(directory / manifest.STARTED) or {}) if not stage else {}
    recipe = stage.get("recipe") or started.get("recipe")
    return Artefact(
        directory,
        adapter_config(str(directory)),
        stage,
        recipe if isinstance(recipe, dict) else {},
        proof_file.read_expected(directory) or {},
    )


def holds_model(folder: Path) -> bool:
    """Whether a folder holds an adapter or a model."""
    return any((folder / name).is_file() for name in MODEL)


def is_stage(folder: Path) -> bool:
    """Whether a folder holds what a stage here has trained."""
    records = (manifest.MANIFEST, manifest.PROOF)
    return holds_model(folder) and any((folder / name).is_file() for name in records)


def tensor_keys(directory: Path) -> dict[str, list[int]]:
    """The key and the shape of every tensor in a folder's safetensors.

    Raises:
        TrainingError: if a file cannot be read.
    """
    found: dict[str, list[int]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is not a dict
                    found[key] = tensors.get_slice(key).get_shape()
        except SafetensorError as error:
            raise TrainingError(f"{file}: cannot be read ({error})") from error
    return found
