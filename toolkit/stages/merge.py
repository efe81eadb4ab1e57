"""`toolkit merge`: an adapter inside its base as one whole model, proved before it takes its place."""

import gc
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from toolkit.artifacts.base_identity import base_differences, base_identity
from toolkit.artifacts.inputs import model_identity
from toolkit.artifacts.manifest import MANIFEST, StageResult, environment, read_json, write_json
from toolkit.artifacts.proof_file import refusal
from toolkit.errors import RecipeError, ToolkitError, TrainingError
from toolkit.models import merge as merging
from toolkit.models import merge_probe
from toolkit.models.load import (
    adapter_config,
    check_model_path,
    commit_of,
    fetch,
    load_tokenizer,
)
from toolkit.models.value import VALUE
from toolkit.stages.terminal import hide_library_bars, note

RECORD = "merge.json"
TEMPLATES = "additional_chat_templates"
DTYPES = ("auto", "bfloat16", "float16", "float32")


def merge(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    model_name_or_path: str | os.PathLike[str] | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> StageResult:
    """Merge an adapter into its base, and prove from disk that the result is the same model.

    The base is loaded once, on the CPU, in 16 or 32 bits even if the adapter was trained over a
    quantized one. The result is written beside `output` and takes its place once it was loaded
    again and gave the logits of base and adapter.

    Args:
        directory: the adapter's folder or Hub id, of a stage or from anyone.
        output: the new folder.
        dtype: of the merged weights: "auto" (the base's own), "bfloat16", "float16" or "float32".
        model_name_or_path: the base, where it is no longer where the adapter says.
        max_shard_size: of one file of weights, as transformers has it.
        overwrite: replace a merged model that is in `output`.

    Returns:
        The new folder, the numbers of the proof, and what is recorded in its merge.json.

    Raises:
        RecipeError: if there is no adapter, its base is another than it was trained over, or
            `output` is taken.
        TrainingError: if the adapter counts as unverified, or the merged model does not give the
            logits of base and adapter.
        HubError: if the Hub does not give what is there.
    """
    name, target = str(directory), Path(output).expanduser()
    if dtype not in DTYPES:
        raise RecipeError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    check_model_path(name)
    adapter = adapter_config(name)
    if adapter is None:
        raise RecipeError(f"{name}: expected an adapter, found a whole model; nothing to merge")
    check_proved(name)
    hide_library_bars()
    trained = trained_as(name)
    base, revision = base_of(name, adapter, trained, model_name_or_path)
    check_output(target, [name, base], overwrite=overwrite)
    check_base(name, base, revision, trained)
    if any(trained.get("recipe", {}).get(key) for key in ("load_in_4bit", "load_in_8bit")):
        note(
            "the adapter was trained over quantized weights; it is merged into those of 16 or 32 "
            "bits that they came from, whose answers differ a little"
        )
    with beside(target) as folder:
        record = merge_into(folder, name, adapter, base, revision, dtype, max_shard_size)
        record |= {"adapter": model_identity(name), "environment": environment()}
        write_json(folder / RECORD, record)
        put_in_place(folder, target)
    return StageResult(target, record["verification"], record)


def merge_into(
    folder: Path,
    name: str,
    adapter: dict[str, Any],
    base: str,
    revision: str | None,
    dtype: str,
    max_shard_size: str,
) -> dict[str, Any]:
    """Merge, write and prove; arguments as of `merge`. Returns what is recorded of it."""
    words = tokenizer_of(name, base, revision)
    model = merging.load_over(name, adapter, base, revision, dtype, words)
    expected = merge_probe.probe(model, words)
    merged = merging.merge_in(model, words)
    del model
    held, kind = merged.num_parameters() * merged.dtype.itemsize, merged.dtype
    if (free := shutil.disk_usage(folder).free) < held:
        raise RecipeError(
            f"--output: the merged model needs {held / 1e9:.1f} GB, and {folder.parent} has "
            f"{free / 1e9:.1f} GB left; name a folder on a larger disk"
        )
    merging.save_merged(merged, words, name, folder, max_shard_size)
    del merged  # one base in memory at a time
    gc.collect()
    again = merging.load_merged(folder)
    found = merge_probe.compare(expected, merge_probe.logits_of(again, expected.sequences), kind)
    precision = str(kind).removeprefix("torch.")
    note(
        f"proved: loaded again by plain transformers in {precision}, logits differ from base and "
        f"adapter by at most {found.largest_difference:.1g} (allowed {found.tolerance:.1g}); the "
        f"adapter changes them by {found.effect:.2g}, merging by {found.difference:.1g} (root mean "
        "square)"
    )
    origin = {"name": base, "commit": commit_of(base, revision)}
    return {"base": origin, "dtype": precision, "verification": asdict(found)}


def check_proved(name: str) -> None:
    """Refuse an adapter whose proof failed, or was never finished; PPO's critic has its stage's.

    Raises:
        TrainingError: saying how to look.
    """
    folder = Path(name).expanduser()
    for place in (folder, *([folder.parent] if folder.name == VALUE else [])):
        if said := refusal(place):
            raise TrainingError(said)


def trained_as(name: str) -> dict[str, Any]:
    """The manifest of the stage that made an adapter; empty for one that others trained."""
    path = Path(name).expanduser()
    if path.is_dir():  # a checkpoint and PPO's critic lie inside their stage's folder
        return read_json(path / MANIFEST) or read_json(path.parent / MANIFEST) or {}
    found = cached_file(name, MANIFEST, _raise_exceptions_for_missing_entries=False)
    return {} if found is None else read_json(Path(found)) or {}


def base_of(
    name: str,
    adapter: Mapping[str, Any],
    trained: Mapping[str, Any],
    given: str | os.PathLike[str] | None,
) -> tuple[str, str | None]:
    """The base to merge into, and its revision: at best the very commit that was trained over.

    Args:
        name: the adapter's folder or Hub id.
        adapter: its adapter_config.json.
        trained: the manifest of its stage.
        given: what is to be taken instead of the base that the adapter names.

    Raises:
        RecipeError: if nothing names a base.
    """
    base = str(given or adapter.get("base_model_name_or_path") or "")
    if not base:
        raise RecipeError(
            f"{name}/adapter_config.json: base_model_name_or_path names no base; name it with "
            "--model_name_or_path"
        )
    if Path(base).expanduser().is_dir():
        return str(Path(base).expanduser()), None
    recorded = trained.get("base_identity") or {}
    commit = recorded.get("commit") if recorded.get("name") == base else None
    return base, commit or adapter.get("revision")


def check_base(name: str, base: str, revision: str | None, trained: Mapping[str, Any]) -> None:
    """Refuse another base than the one that the adapter was trained over; shapes say nothing.

    Args:
        name: the adapter.
        base: the base to merge into.
        revision: of the base on the Hub.
        trained: the manifest of the adapter's stage.

    Raises:
        RecipeError: if weights, settings or tokenizer of the base differ from what was recorded.
        HubError: if the Hub does not give the base.
    """
    fetch(base, revision)
    differing = base_differences(trained.get("base_identity"), base_identity(base, revision))
    if differing is None:
        note(
            f"nothing beside {name} says which weights it was trained over, so {base} is taken for "
            "its base as the adapter's settings say"
        )
    elif differing:
        raise RecipeError(
            f"{base} is not the base that {name} was trained over: {' and '.join(differing)} "
            "differ; name the right one with --model_name_or_path, or train the adapter again over "
            "this one"
        )


def tokenizer_of(name: str, base: str, revision: str | None) -> Any:
    """The adapter's tokenizer; the base's where the adapter brings none, and that is said."""
    try:
        return load_tokenizer(name)
    except (ToolkitError, ValueError):
        note(f"{name} brings no tokenizer: that of {base} is written beside the merged model")
        return load_tokenizer(base, revision=revision)


def check_output(target: Path, kept: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a place for the result that holds something else.

    Args:
        target: where it is to go.
        kept: what must stay: the adapter and the base.
        overwrite: whether an earlier merged model may go.

    Raises:
        RecipeError: saying what is there.
    """
    for name in kept:
        place = Path(name).expanduser().resolve()
        if place.is_dir() and target.resolve() in (place, *place.parents):
            raise RecipeError(
                f"--output: {target} holds {name}, which is merged from; name another folder"
            )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not overwrite:
        raise RecipeError(
            f"--output: {target} exists and is not empty; name a new folder, or give --overwrite to "
            "replace the merged model in it"
        )
    others = [file.name for file in target.iterdir() if file.is_dir() and file.name != TEMPLATES]
    if others or not (target / "config.json").is_file():
        raise RecipeError(
            f"--output: {target} holds {f'the folder {others[0]}' if others else 'no model'}; "
            "--overwrite replaces a merged model and nothing else"
        )


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new folder on the same disk as `target`, gone at the end unless it took its place."""
    folder = target.absolute().with_name(f".{target.absolute().name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RecipeError(f"--output: no folder can be made at {folder}: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, target: Path) -> None:
    """Give the finished folder its name; what was there goes after that, never before."""
    target = target.absolute()
    former = folder.with_suffix(".old")
    if target.exists():
        target.rename(former)
    folder.rename(target)
    shutil.rmtree(former, ignore_errors=True)
