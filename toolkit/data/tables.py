"""One data set as a table: a local file, a folder, or a data set of the Hub."""

import difflib
import glob
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk

from toolkit.data.bad_rows import BadRows
from toolkit.data.columns import listed, with_place
from toolkit.data.files import COMPRESSED, READABLE, suffix_of
from toolkit.data.hub import HUB_ID, load_from_hub
from toolkit.data.kept_rows import rows_of, sha256_of
from toolkit.data.splits import check_split, part_of, splits_in
from toolkit.errors import DataError

BUILDERS = ("json", "csv", "parquet")
"""Names that `datasets` gives to file types; with them, `data_files` says what is read."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation",
}  # fmt: skip
SPLIT_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_NAMES)})(?:[^a-z]|$)")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that say something about a data set, and are none of its rows."""


def load_table(
    name: str | os.PathLike[str],
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: Any = None,
    bad: BadRows | None = None,
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
        bad: takes rows that cannot be read; without it, the first of them is an error.

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
        table, found = _read(name, _named(data_files, Path(data_dir or "")), split, bad)
    elif (path := _local_path(name)) is not None:
        if config is not None or revision is not None:
            key = "dataset_config" if config is not None else "dataset_revision"
            raise DataError(f"{name} is on this disk, so {key} has no meaning; leave it out")
        table, found = _local(path / (data_dir or ""), name, split, data_files, bad)
    else:
        where = {"data_dir": data_dir, "data_files": data_files}
        given = {key: value for key, value in where.items() if value is not None}
        table, found = load_from_hub(name, config, split, revision, **given)
        table = with_place(table, f"{name} {split}")
    if not len(table):
        raise DataError(f"{name}: split {split!r} has no rows")
    return table, origin | found | {"rows": len(table)}


def _local_path(name: str) -> Path | None:
    """The place on this disk that a name stands for; None if it is a Hub id.

    Raises:
        DataError: if it looks like a path and nothing is there, with the near names.
    """
    try:
        path = Path(name).expanduser()
        if path.exists():
            return path
        whole = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such user, no right
        raise DataError(f"{listed([name])}: no file or folder to be read: {error}") from error
    if HUB_ID.fullmatch(name) and suffix_of(path) not in READABLE:
        return None
    if "://" in name:
        raise DataError(f"{name}: expected a Hub id, a file or a folder, found an address")
    if not whole.parent.is_dir():
        raise DataError(f"no file or folder {whole}; there is no folder {whole.parent} either")
    there = [item.name for item in whole.parent.iterdir()]
    near = difflib.get_close_matches(path.name, there, n=3)
    hint = f"; near names there: {listed(near)}" if near else ""
    raise DataError(f"no file or folder {whole}{hint}")


def _local(
    path: Path, name: str, split: str, data_files: Any, bad: BadRows | None
) -> tuple[Dataset, dict[str, Any]]:
    if data_files is not None:
        return _read(name, _named(data_files, path), split, bad)
    if path.is_file():
        return _read(name, {"train": [path]}, split, bad)
    if not path.is_dir():
        raise DataError(f"no folder {path.resolve()}")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path, name, split)
    files, unread = _files_by_split(path)
    if not files:
        below = [item.name for item in sorted(path.iterdir()) if item.is_dir()]
        hint = f"; its folders are {listed(below)}: name one of them" if below else ""
        raise DataError(f"{path.resolve()}: the folder has no file of {', '.join(READABLE)}{hint}")
    table, found = _read(name, files, split, bad)
    if unread:
        found["notes"].append(f"{name}: not read: {listed(unread)}")
    return table, found


def _saved(path: Path, name: str, split: str) -> tuple[Dataset, dict[str, Any]]:
    """A data set that `save_to_disk` wrote."""
    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        words = " ".join(str(error).split())
        raise DataError(f"{name}: not a data set that save_to_disk wrote: {words[:300]}") from error
    tables = saved if isinstance(saved, DatasetDict) else {"train": saved}
    placed = {str(key): with_place(table, f"{name} {key}") for key, table in tables.items()}
    picked = part_of(placed, split, name)
    return picked, {"fingerprint": picked._fingerprint}


def _files_by_split(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The data files of a folder by split, and what else looks like data.

    A split is the first word of `SPLIT_NAMES` in a file's name, or the name of the folder that it
    is in. Where no name has one, all files are `train`.
    """
    places = [folder, *(folder / name for name in ("data", *SPLIT_NAMES))]
    files = [f for place in places if place.is_dir() for f in sorted(place.iterdir())]
    files = [f for f in files if f.is_file() and f.name not in ABOUT and f.name[0] not in "._"]
    unread = [f for f in files if suffix_of(f) in COMPRESSED]
    files = [f for f in files if suffix_of(f) in READABLE]
    found: dict[str, list[Path]] = {}
    for file in files:
        if word := SPLIT_WORD.search(file.relative_to(folder).as_posix().lower()):
            found.setdefault(SPLIT_NAMES[word[1]], []).append(file)
    if found:
        unread += [f for f in files if not any(f in read for read in found.values())]
    elif files:
        found = {"train": files}
    return found, [str(f.relative_to(folder)) for f in unread]


def _named(data_files: Any, folder: Path) -> dict[str, list[Path]]:
    """`data_files` as TRL takes it, a name, a pattern, a list or these per split, as paths."""
    if not isinstance(data_files, Mapping):
        data_files = {"train": data_files}
    found: dict[str, list[Path]] = {}
    for split, names in data_files.items():
        found[str(split)] = paths = []
        for name in [names] if isinstance(names, str | os.PathLike) else names:
            path = folder / Path(name).expanduser()
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            matches = [path] if path.exists() else [match for match in matches if match.is_file()]
            if not matches or not matches[0].is_file():
                raise DataError(f"data_files: there is no file {path.resolve()}")
            paths += matches
    return found


def _read(
    name: str, files: Mapping[str, list[Path]], split: str, bad: BadRows | None
) -> tuple[Dataset, dict[str, Any]]:
    """Read the files of the splits that are asked for, and no others."""
    check_split(name, split, files)
    tables, notes, digests = {}, list[str](), list[str]()
    for key in splits_in(split):
        named = {path: _called(path, name) for path in files[key]}
        found = [_sha256(path, source) for path, source in named.items()]
        tables[key], said = rows_of(named, found, name, bad or BadRows())
        notes += said
        digests += found
    whole = digests[0] if len(digests) == 1 else sha256_of(digests)
    return part_of(tables, split, name), {"sha256": whole, "notes": notes}


def _called(path: Path, name: str) -> str:
    """What messages call a file of a data set: as the recipe does, if it names the file."""
    return name if str(path) == str(Path(name).expanduser()) else str(path)


def _sha256(path: Path, source: str) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
