"""One data set as a table: a local file, a folder, or a data set of the Hub."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets, load_from_disk

from toolkit.data.files import READABLE, read_file, suffix_of, with_place
from toolkit.data.hub import HUB_ID, load_from_hub
from toolkit.errors import DataError

BUILDERS = ("json", "csv", "parquet")
"""Names that `datasets` gives to file types; with them, `data_files` says what is read."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation",
}  # fmt: skip
GUESSED_WITHIN = ("", "data")


def load_table(
    name: str | os.PathLike[str],
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: Any = None,
) -> tuple[Dataset, dict[str, Any]]:
    """The rows of one data set as they stand, with two columns more: `source` and `row`.

    Args:
        name: a Hub id, a JSONL, JSON, CSV or Parquet file, or a folder.
        config: a configuration of a data set on the Hub.
        split: `train`, or a part of it such as `train[:1000]` or `train[10%:20%]`.
        revision: a branch, tag or commit on the Hub.
        streaming: refused; rows are counted before training.
        data_dir: a folder below it.
        data_files: files below it, or with `json`, `csv` or `parquet` as name, the files to read.

    Returns:
        The rows, and where they come from: `dataset_name`, `revision`, `split`, `rows` and the
        `sha256` of a file or else a `fingerprint`; `notes` says what was skipped.

    Raises:
        DataError: if there is no such file, split or row, or it cannot be read.
        HubError: if the Hub does not give it.
    """
    name = os.fspath(name)
    if streaming:
        raise DataError(f"{name}: streaming is not supported: rows are counted before training")
    origin: dict[str, Any] = {"dataset_name": name, "revision": None, "split": split}
    if name in BUILDERS and data_files is not None:
        table, found = _pick_split(name, _listed(data_files, Path(), data_dir), split)
    elif _is_local(name):
        if config is not None or revision is not None:
            key = "dataset_config" if config is not None else "dataset_revision"
            raise DataError(f"{name} is on this disk, so {key} has no meaning; leave it out")
        path = Path(name).expanduser() / (data_dir or "")
        table, found = _local(path, name, split, data_files)
    else:
        where = {"data_dir": data_dir, "data_files": data_files}
        given = {key: value for key, value in where.items() if value is not None}
        table, commit = load_from_hub(name, config, split, revision, **given)
        found = {"revision": commit, "fingerprint": table._fingerprint}
        found |= {"config": config} if config else {}
        table = with_place(table, f"{name} {split}")
    if not len(table):
        raise DataError(f"{name}: split {split!r} has no rows")
    return table, origin | found | {"rows": len(table)}


def _is_local(name: str) -> bool:
    """Whether a name is a place on this disk; one that looks like it must also be there.

    Raises:
        DataError: if it looks like a path and nothing is there, with the near names.
    """
    path = Path(name).expanduser()
    if path.exists():
        return True
    looks_like_path = (
        suffix_of(path) in READABLE
        or name.startswith((".", "/", "~", "\\"))
        or "\\" in name
        or re.match(r"[A-Za-z]:", name)
        or name.count("/") > 1
        or not HUB_ID.fullmatch(name)
    )
    if not looks_like_path:
        return False
    if "://" in name:
        raise DataError(f"{name}: expected a Hub id, a file or a folder, found an address")
    parent = path.resolve().parent
    there = sorted(item.name for item in parent.iterdir()) if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=3)
    hint = f"; near names there: {', '.join(near)}" if near else ""
    if not parent.is_dir():
        hint = f"; there is no folder {parent} either"
    raise DataError(f"no file or folder {path.resolve()}{hint}")


def _local(path: Path, name: str, split: str, data_files: Any) -> tuple[Dataset, dict[str, Any]]:
    if data_files is not None:
        return _pick_split(name, _listed(data_files, path, None), split)
    if path.is_file():
        return _pick_split(name, {"train": [path]}, split)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path, name, split)
    for folder in GUESSED_WITHIN:
        if files := _files_by_split(path / folder):
            return _pick_split(name, files, split)
    raise DataError(f"{path.resolve()}: the folder has no file of {', '.join(READABLE)}")


def _saved(path: Path, name: str, split: str) -> tuple[Dataset, dict[str, Any]]:
    """A data set that `save_to_disk` wrote."""
    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{name}: not a data set that save_to_disk wrote: {error}") from error
    tables = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
    tables = {key: with_place(table, f"{name} {key}") for key, table in tables.items()}
    picked = _slice(name, tables, split)
    return picked, {"fingerprint": picked._fingerprint}


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The data files of a folder by the split that their names begin with; all are `train` if none."""
    if not folder.is_dir():
        return {}
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and suffix_of(f) in READABLE]
    found: dict[str, list[Path]] = {}
    for file in files:
        word = re.match(r"[a-z]*", file.name.lower())
        if word and (split := SPLIT_NAMES.get(word[0])):
            found.setdefault(split, []).append(file)
    return found or ({"train": files} if files else {})


def _listed(data_files: Any, base: Path, data_dir: str | None) -> dict[str, list[Path]]:
    """`data_files` as TRL takes it, a name, a list or names per split, as paths by split."""
    if not isinstance(data_files, Mapping):
        data_files = {"train": data_files}
    found = {}
    for split, names in data_files.items():
        names = [names] if isinstance(names, str | os.PathLike) else list(names)
        found[str(split)] = [base / (data_dir or "") / Path(n).expanduser() for n in names]
    for path in (path for paths in found.values() for path in paths):
        if not path.is_file():
            _is_local(f"./{path}" if not path.is_absolute() else str(path))
            raise DataError(f"{path}: expected a file")
    return found


def _pick_split(
    name: str, files: dict[str, list[Path]], split: str
) -> tuple[Dataset, dict[str, Any]]:
    """Read the files of the splits that are asked for, and no others."""
    wanted = set(re.findall(r"(?:^|\+)\s*([\w.-]+)", split))
    tables, notes, digests = {}, list[str](), list[str]()
    for key, paths in files.items():
        if key not in wanted:
            continue
        parts = []
        for path in paths:
            table, found = read_file(path, name if str(path) == str(Path(name)) else str(path))
            parts.append(table)
            notes += found
            digests.append(_sha256(path))
        tables[key] = joined(parts, name)
    if wanted - tables.keys():
        raise _no_split(name, split, files)
    whole = (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
    return _slice(name, tables, split), {"sha256": whole, "notes": notes}


def _slice(name: str, tables: Mapping[str, Dataset], split: str) -> Dataset:
    """The part of the tables that a split names, by the rules of `datasets`."""
    sizes = {key: len(table) for key, table in tables.items()}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        if not set(re.findall(r"(?:^|\+)\s*([\w.-]+)", split)) <= tables.keys():
            raise _no_split(name, split, tables) from error
        raise DataError(f"{name}: cannot read split {split!r}: {error}") from error
    picked = [
        tables[part.splitname].select(range(part.from_ or 0, part.to or 0))
        if (part.from_ or 0, part.to) != (0, sizes[part.splitname])
        else tables[part.splitname]
        for part in parts
    ]
    return joined(picked, name)


def _no_split(name: str, split: str, found: Iterable[str]) -> DataError:
    return DataError(
        f"{name}: there is no split {split!r}; found {', '.join(found)}: to hold rows out of the "
        "training rows, set test_split_size: 0.05"
    )


def joined(parts: list[Dataset], name: str) -> Dataset:
    """The parts one after another.

    Raises:
        DataError: if their columns differ in type.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        return concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{name}: its files have columns of different types: {first}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
