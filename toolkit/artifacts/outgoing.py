"""What may leave this machine: an allow-list of files, without secrets and local paths."""

import fnmatch
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import MANIFEST, STARTED, damaged_outputs, read_json
from toolkit.artifacts.proof_file import refusal
from toolkit.errors import HubError, UsageError

CARD = "README.md"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors")
SETTINGS = ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json")
ALLOWED = (
    *WEIGHTS, *SETTINGS, "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "preprocessor_config.json", "processor_config.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja", "plots/*.png",
)  # fmt: skip
"""What is pushed of a folder, besides the card and stage.json, which are written for the push."""
OF_THE_HUB = (
    "push_to_hub", "hub_model_id", "hub_revision", "hub_strategy", "hub_private_repo",
    "hub_always_push", "share_samples", "resume_from_checkpoint", "log_completions_hub_repo",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
)  # fmt: skip
"""Keys that say where this user's things go; who trains it once more has places of his own."""
BELOW = ("", "value/")  # PPO's value adapter lies in a folder of its own
ABSOLUTE = re.compile(
    r"(?<![\w./\\])(?:file://|(?!//))(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\]+[^\s/\\'\",;|<>]+){2,}"
)
PREFIXED = re.compile(r"(base |weights of |data |from |adapter:)(\S+)")  # as a manifest names them


def allowed_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that the allow-list names, by their path in the repository.

    Raises:
        UsageError: if the folder holds no model or adapter in safetensors.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name the one that holds the adapter or model")
    found = {
        file.relative_to(folder).as_posix(): file
        for below in BELOW
        for pattern in ALLOWED
        for file in folder.glob(below + pattern)
        if file.is_file()
    }
    configured = {"adapter_config.json", "config.json"} & found.keys()
    if not configured or not any(fnmatch.fnmatch(name, part) for name in found for part in WEIGHTS):
        raise UsageError(
            f"{folder}: expected an adapter or a model (adapter_config.json or config.json, and "
            "weights in *.safetensors), found none; name the folder of a finished stage"
        )
    return dict(sorted(found.items()))


def is_ours(path: str) -> bool:
    """Whether a path in a repository is one that a push writes, and may therefore remove."""
    return path == MANIFEST or any(
        fnmatch.fnmatch(path, below + part) for below in BELOW for part in ALLOWED
    )


def left_out(folder: Path, allowed: Mapping[str, Path]) -> list[str]:
    """What stays on this machine: files and folders at the top of `folder`, by name."""
    written_anew = {CARD, MANIFEST}
    tops = {name.split("/")[0] for name in allowed} | written_anew
    return sorted(path.name for path in folder.iterdir() if path.name not in tops)


def check_finished(folder: Path, allowed: Mapping[str, Path]) -> dict[str, Any]:
    """The manifest of what is pushed; {} for an adapter that was trained elsewhere.

    Raises:
        HubError: if the stage did not finish, its proof failed, or a file was changed since.
    """
    if said := refusal(folder):
        raise HubError(said)
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        if (folder / STARTED).is_file() or (folder / MANIFEST).is_file():
            raise HubError(f"{folder}: the stage did not finish: run it again, then push")
        return {}
    recorded = {
        name: about for name, about in manifest.get("outputs", {}).items() if name in allowed
    }
    if damage := damaged_outputs(folder, {"outputs": recorded}):
        raise HubError(
            f"{folder}: not what the stage has proved: {'; '.join(damage)}; put the files back, or "
            f"remove {MANIFEST} to push them without its record"
        )
    return manifest


def without_paths(value: Any, rename: Callable[[str], str]) -> Any:
    """JSON with every local path cut down to its last part, without rows of data and `OF_THE_HUB`.

    Args:
        value: what is to be pushed.
        rename: gives the name to show for a text, such as that of a private repository.
    """
    if isinstance(value, Mapping):
        return {
            public(str(key), rename, key=True): without_paths(item, rename)
            for key, item in value.items()
            if key not in OF_THE_HUB and not (key in ("rows", "samples") and isinstance(item, list))
        }
    if isinstance(value, list | tuple):
        return [without_paths(item, rename) for item in value]
    return public(value, rename) if isinstance(value, str) else value


def public(text: str, rename: Callable[[str], str], *, key: bool = False) -> str:
    """A text without local paths, as `rename` then has it; a metric's name is no path."""
    if found := PREFIXED.fullmatch(text):
        return found[1] + public(found[2], rename)
    if is_local(text) and not key:
        return last_part(text)
    return rename(ABSOLUTE.sub(lambda found: last_part(found[0]), text))


def is_local(name: str) -> bool:
    """Whether a name is that of a file or folder here, and not of the Hub."""
    if not name or "\n" in name or len(name) > 1024 or "://" in name:
        return False
    path = Path(name)
    if path.is_absolute() or name[0] in "~." or re.match(r"[A-Za-z]:[\\/]", name):
        return "/" in name or "\\" in name
    several = name.count("/") > 1 and not re.search(r"\s", name)
    return several or ("/" in name and path.exists())


def last_part(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1]


def check_paths(files: Mapping[str, Path], folder: Path) -> None:
    """A last look at what people read: none of it may name this machine's folders.

    Raises:
        HubError: if a card, a manifest, a template or a settings file does.
    """
    places = {str(folder.absolute()), str(folder.resolve()), str(Path.home()), str(Path.cwd())}
    read = {*SETTINGS, CARD, MANIFEST}
    for name, path in files.items():
        if name.split("/")[-1] in read or name.endswith(".jinja"):
            text = path.read_text(encoding="utf-8", errors="replace")
            for place in places:
                if place.count(os.sep) > 1 and json.dumps(place)[1:-1] in text:
                    raise HubError(f"{name}: holds the local path {place}; take it out")
