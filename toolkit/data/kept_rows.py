"""The rows of files: of small ones in memory, of large ones in the cache of `datasets`.

A large file is read once, some thousand rows at a time, and mapped into memory from then on.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from datasets import Dataset

from toolkit.data.bad_rows import BadRows
from toolkit.data.columns import united
from toolkit.data.files import read_file
from toolkit.data.key import code_digest
from toolkit.data.once import LARGE, kept_at

SAID = b"toolkit"
"""The key of a kept file's metadata that says what was said when it was read."""
ROWS_A_BATCH = 1000  # as `datasets` writes them


def rows_of(
    files: Mapping[Path, str], digests: list[str], name: str, bad: BadRows
) -> tuple[Dataset, list[str]]:
    """Every row of some files, with `source` and `row`, and what there is to say about them.

    Args:
        files: what messages call each.
        digests: SHA-256 of each.
        name: what messages call all of them.
        bad: takes rows that cannot be read.

    Raises:
        DataError: if one of the files is broken, or the cache cannot be written.
    """
    notes = list[str]()
    what = [name, str(bad.stops_at_first), *files.values(), *digests, code_digest()]
    fingerprint = sha256_of(what)[:32]
    if sum(path.stat().st_size for path in files if path.exists()) < LARGE:
        # a fingerprint of our own, for `datasets` would copy all rows to find one
        table = united(list(_tables(files, notes, bad)), name)
        return Dataset(table, fingerprint=fingerprint), notes  # type: ignore[arg-type]
    with kept_at(fingerprint) as place:
        said = _said(place)
        if said is None:
            own = BadRows(bad.most)  # of these files alone
            said = {"notes": notes, "bad": own.found}
            write(place, _tables(files, notes, own), name, said)
        for line in said["bad"]:
            bad.count(line)
        found = Dataset.from_file(str(place))
    found._fingerprint = fingerprint  # what is read from the cache has another, of its file
    return found, said["notes"]


def _tables(files: Mapping[Path, str], notes: list[str], bad: BadRows) -> Iterator[pa.Table]:
    for path, source in files.items():
        yield from read_file(path, source, notes, bad)


def _said(place: Path) -> dict[str, Any] | None:
    """What was said when a kept file was read; None if it is not there, or not whole."""
    try:
        with pa.memory_map(str(place)) as file, pa.ipc.open_stream(file) as stream:
            said = json.loads((stream.schema.metadata or {})[SAID])
            return said if sum(map(len, stream)) == said["rows"] else None
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None


def write(place: Path, tables: Iterable[pa.Table], name: str, said: Mapping[str, Any]) -> None:
    """Write tables as one file, holding one of them at a time; it is there when it is whole.

    Args:
        place: the file.
        tables: their columns may differ.
        name: what messages call them.
        said: what to keep beside the rows, as it is when all tables were read.
    """
    with TemporaryDirectory(dir=place.parent) as own:
        parts, whole = Path(own, "parts"), Path(own, "whole")
        with parts.open("wb") as sink:
            for table in tables:
                with pa.ipc.new_stream(sink, table.schema) as stream:
                    stream.write_table(table)
        with pa.memory_map(str(parts)) as file:
            table = united(list(_parts(file)), name)
            about = json.dumps({**said, "rows": len(table)}).encode()
            metadata = {**(table.schema.metadata or {}), SAID: about}
            table = table.replace_schema_metadata(metadata)
            with whole.open("wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table, max_chunksize=ROWS_A_BATCH)
            del table
        os.replace(whole, place)


def _parts(file: pa.MemoryMappedFile) -> Iterator[pa.Table]:
    """The tables that were written one after another, each with its own schema."""
    while file.tell() < file.size():
        yield pa.ipc.open_stream(file).read_all()


def sha256_of(texts: list[str]) -> str:
    """A digest of some texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
