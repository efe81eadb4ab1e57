"""What a stage's result depends on, as digests: if none of it changed, the stage need not run."""

import glob
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from toolkit.artifacts.manifest import MANIFEST, digest_of, digest_of_files, read_json, sha256_of
from toolkit.artifacts.model_files import file_digest, model_files, weight_files
from toolkit.errors import RecipeError
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import ADAPTER

# Keys that change where things go or what is shown, not what is trained.
NEUTRAL = {
    "output_dir", "run_name", "report_to", "project", "trackio_space_id", "resume_from_checkpoint",
    "trackio_bucket_id", "trackio_static_space_id", "share_samples", "log_completions",
    "log_completions_hub_repo", "log_unique_prompts", "num_completions_to_print",
    "logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "log_level",
    "log_level_replica", "disable_tqdm", "save_total_limit", "save_steps", "save_strategy",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push",
    "hub_revision", "dataset_num_proc", "dataloader_num_workers",
    "reward_timeout", "on_reward_error", "max_reward_errors", "probes", "traces",
}  # fmt: skip
WEIGHTS_OF = "weights of "


def inputs_of(
    stage: StageRecipe, earlier: Mapping[str, Path], objects: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that a stage's result depends on.

    Args:
        stage: its recipe.
        earlier: folders of finished stages, by name.
        objects: what Python gave in place of names.

    Returns:
        Plain data: the recipe's keys, and one digest or id for the base, each data set, each
        earlier stage and each object.

    Raises:
        RecipeError: if the base's weights are not those below the adapter that is continued.
    """
    recipe = {key: value for key, value in stage.resolved().items() if key not in NEUTRAL}
    found: dict[str, Any] = {"recipe": _plain(recipe)}
    base = stage.written.get("model_name_or_path")
    if base:
        found[f"base {base}"] = model_identity(str(base))
        if (weights := weights_identity(str(base))) is not None:
            found[f"{WEIGHTS_OF}{base}"] = weights
    for name in _data_names(stage):
        found[f"data {name}"] = data_identity(name)
    start = stage.written.get("start_from")
    if base and start is not None:
        check_weights_below(str(base), Path(earlier.get(start, start)).expanduser())
    for parent in _parents(stage, earlier):
        found[f"from {parent}"] = model_identity(str(earlier.get(parent, parent)))
    for task in stage.written.get("tasks") or ():
        if (rows := _field(task, "rows")) is not None:
            found[f"object rows of {_field(task, 'name')}"] = object_identity(rows)
    for key, value in objects.items():
        found[f"object {key}"] = object_identity(value)
    return found


def _plain(value: Any) -> Any:
    """The value with everything that JSON has no word for as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _data_names(stage: StageRecipe) -> list[str]:
    """Every file, folder and data set that the recipe names."""
    written = stage.written
    names = [written.get("dataset_name"), written.get("chat_template_path")]
    for entry in written.get("datasets") or ():
        path, folder = _field(entry, "path"), _field(entry, "data_dir") or ""
        names += [path]
        below = [Path(folder), *([Path(path, folder)] if Path(path).is_dir() else [])]
        files = [Path(file).expanduser() for file in _strings(_field(entry, "data_files"))]
        names += [str(place / file) for place in below for file in files]
    for task in written.get("tasks") or ():
        names += [_field(task, "dataset_name"), _field(task, "few_shot")]
    code = [*_rewards(stage), written.get("trainer_class")]  # my_rewards.py:helpful
    names += [str(word).rpartition(":")[0] for word in code if ".py:" in str(word)]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _field(entry: Any, key: str) -> Any:
    """A field of a mapping or of an upstream dataclass."""
    return entry.get(key) if isinstance(entry, Mapping) else getattr(entry, key, None)


def _strings(value: Any) -> list[str]:
    """Every text in a value that may be a text, a list, or a mapping of them."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value or ()
    return [text for part in parts for text in _strings(part)]


def _parents(stage: StageRecipe, earlier: Mapping[str, Path]) -> list[str]:
    """Every earlier stage or folder that the recipe starts from or examines; by default all."""
    written = stage.written
    start = written.get("start_from")
    examined = written.get("of") or (earlier if stage.stage == "evaluate" else ())
    judges = [*_rewards(stage), written.get("value_start_from")]
    scored = [str(name).removeprefix(ADAPTER) for name in judges if str(name).startswith(ADAPTER)]
    return [name for name in (start, *examined, *scored) if name and name != "base"]


def _rewards(stage: StageRecipe) -> list[str]:
    """The names of the rewards, without their parameters."""
    entries = [
        entry for key in ("reward_funcs", "gold_funcs") for entry in stage.written.get(key) or ()
    ]
    return [entry if isinstance(entry, str) else str(entry.get("name")) for entry in entries]


def data_identity(name: str) -> str:
    """A digest of a file, a folder or the files that a pattern such as `data/*.jsonl` fits by now.

    Of a Hub id it is the id: its revision is a key of its own.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return f"sha256:{sha256_of(path)}"
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return f"sha256:{digest_of_files(path, files)}"
    fitting = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) else []
    if files := [Path(file) for file in fitting if Path(file).is_file()]:
        return f"sha256:{digest_of({str(file): sha256_of(file) for file in files})}"
    return name


def model_identity(name: str) -> str:
    """What a model or an adapter is: a digest of its files as they are now, or its Hub id.

    A manifest beside them is not asked: it says what the files were when they were written.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        return name
    files = {file.relative_to(path).as_posix(): file_digest(file) for file in model_files(path)}
    return f"sha256:{digest_of(files)}"


def weights_identity(name: str) -> str | None:
    """A digest of the weight files in a folder, whatever they are called; None without any."""
    files = weight_files(Path(name).expanduser())
    return f"sha256:{digest_of([file_digest(file) for file in files])}" if files else None


def check_weights_below(base: str, adapter: Path) -> None:
    """Refuse to continue an adapter over other weights than those it was trained over.

    Args:
        base: the folder or the Hub id of the base as it is now.
        adapter: the adapter's folder; nothing is known without its manifest.

    Raises:
        RecipeError: if the folder of the base holds other weights by now.
    """
    recorded = (read_json(adapter / MANIFEST) or {}).get("inputs", {})
    below = [value for key, value in recorded.items() if key.startswith(WEIGHTS_OF)]
    now = weights_identity(base)
    if below and now is not None and below != [now]:
        raise RecipeError(
            f"start_from: the weights in {base} are not those that {adapter} was trained over; put "
            "them back, or train that adapter again over these"
        )


def object_identity(value: Any) -> str:
    """A digest of rows, of a model's weights, of a tokenizer or of a list; of others, their class.

    The entries of a list that are no rows, such as callbacks, count as `_described` has them.
    """
    if hasattr(value, "named_parameters"):
        return f"sums:{weights_digest(value)}"
    if hasattr(value, "get_vocab"):
        parts = (value.get_vocab(), value.special_tokens_map, value.chat_template)
        return f"sha256:{digest_of(parts)}"
    fingerprint = getattr(value, "_fingerprint", None)
    if fingerprint is not None:
        return f"fingerprint:{fingerprint}"
    if isinstance(value, list | tuple):
        entries = [
            dict(entry) if isinstance(entry, Mapping) else _described(entry) for entry in value
        ]
        return f"sha256:{digest_of(entries)}"
    if isinstance(value, Sequence) and all(isinstance(row, Mapping) for row in value):
        return f"sha256:{digest_of([dict(row) for row in value])}"
    return type(value).__name__


def _described(value: Any) -> Any:
    """An object by its class and the settings it was made with, as far as they are plain.

    A setting is a parameter of the constructor that is a public attribute by the same name, and a
    number, a text or a truth value. What an object counts or collects while it is used is none:
    the same object would count as another one afterwards.
    """
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, FunctionType):
        code = value.__code__
        plain = [c for c in code.co_consts if isinstance(c, str | int | float | bool)]
        return [value.__module__, value.__qualname__, code.co_code.hex(), plain]
    kind = value if isinstance(value, type) else type(value)
    settings: dict[str, Any] = {}
    if not isinstance(value, type):
        names = inspect.signature(kind.__init__).parameters
        held = {name: getattr(value, name, None) for name in names if not name.startswith("_")}
        settings = {
            name: setting
            for name, setting in held.items()
            if isinstance(setting, str | int | float | bool)
        }
    return [kind.__module__, kind.__qualname__, settings]


def weights_digest(model: Any) -> str:
    """A digest of the weights in memory: the sum of each tensor, and of every seventh number."""
    sums = {
        name: [float(part.cpu().double().sum()) for part in (tensor, tensor.flatten()[::7])]
        for name, tensor in model.state_dict().items()
    }
    return digest_of(sums)
