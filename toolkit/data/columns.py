"""Rows as Arrow columns that give back exactly what went in.

Arrow's structs give every object the keys of all others, with nulls, so that tools would be called
with arguments nobody gave; and what `datasets` encodes by itself is rounded to ten digits. So what
is not plain is held as JSON text, and where a file brings structs, a null there is an absent key.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from toolkit.errors import DataError

PLACE = ("source", "row")
"""The columns that say where a row comes from: the file, and its line or position from one."""

OWN = {name: f"own_{name}" for name in ("dataset", *PLACE)}
"""What a data set's own columns of these names are called, which say where a row comes from."""

Row = tuple[int, dict[str, Any]]

CHUNK_ROWS = 2000  # how many rows are Python objects at a time; they take ten times Arrow's memory
MOST_COLUMNS = 1000  # beyond it, keys are data: each of them would be a column as long as the file
PLAIN = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, bytes):
        return "bytes"
    return "a list" if isinstance(value, Sequence) else type(value).__name__


def listed(names: Iterable[Any]) -> str:
    """Names for a message: the first twenty, and none that would break its line."""
    shown = [n if isinstance(n, str) and n.isprintable() and n else repr(n) for n in names]
    more = f" and {len(shown) - 20:,} more" if len(shown) > 20 else ""
    return (", ".join(name[:60] for name in shown[:20]) or "none") + more


def tables_of(rows: Iterable[Row], source: str) -> Iterator[pa.Table]:
    """Numbered rows as tables, whose columns are the keys of their rows, with `source` and `row`.

    Keys of that name become columns as `OWN` says.

    Raises:
        DataError: if a key can be no column's name, or there are so many that they can be none.
    """
    remaining, known = iter(rows), set[str]()
    while chunk := list(islice(remaining, CHUNK_ROWS)):
        names = dict.fromkeys(name for _, row in chunk for name in row)
        known |= names.keys()
        _check_names(names, chunk, source)
        if len(known) > MOST_COLUMNS:
            raise DataError(
                f"{source}: over {MOST_COLUMNS:,} different keys by row {chunk[-1][0]:,}, such as "
                f"{listed(sorted(known)[:3])}; expected the same few keys in every row"
            )
        columns = {
            OWN[name] if name in PLACE else name: _array([row.get(name) for _, row in chunk])
            for name in names
        }
        columns["source"] = pa.repeat(source, len(chunk))
        columns["row"] = pa.array([number for number, _ in chunk], pa.int64())
        yield pa.table(columns)


def _check_names(names: Iterable[str], chunk: Sequence[Row], source: str) -> None:
    """Check that keys can be names of columns: `datasets` ends a name at a NUL."""
    for name in names:
        if "\0" in name:
            number = next(number for number, row in chunk if name in row)
            raise DataError(
                f"{source}, row {number}: the key {listed([name])} has a NUL; rename it"
            )


def _array(values: list[Any]) -> pa.Array:
    """A column: plain where all values agree, else JSON, which keeps each as it is."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values))
    kind = kinds.pop()
    if kinds or kind not in PLAIN:
        return json_array(values)
    if kind is int and any(value is not None and abs(value) >= 2**63 for value in values):
        return json_array(values)
    return pa.array(values, PLAIN[kind])


def json_array(values: Iterable[Any]) -> pa.Array:
    """A column of JSON text, one value each."""
    texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(texts, pa.json_())


def united(tables: Sequence[pa.Table], source: str) -> pa.Table:
    """The tables one after another; a column that has several types among them becomes JSON.

    Raises:
        DataError: if such a column holds what JSON has no words for.
    """
    if all(table.schema.equals(tables[0].schema, check_metadata=True) for table in tables):
        return pa.concat_tables(tables)
    columns = {}
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        kinds = {t.schema.field(name).type for t in tables if name in t.column_names} - {pa.null()}
        kind = kinds.pop() if len(kinds) == 1 else _common(kinds)
        try:
            chunks = [chunk for table in tables for chunk in _chunks(table, name, kind)]
        except TypeError as error:
            raise DataError(
                f"{source}: column {listed([name])} has different types in different files: {error}"
            ) from error
        columns[name] = pa.chunked_array(chunks, kind)
    return pa.table(columns)


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    if not kinds:
        return pa.null()
    texts = all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds)
    return pa.large_string() if texts else pa.json_()


def _chunks(table: pa.Table, name: str, kind: pa.DataType) -> Iterator[pa.Array]:
    """One column of a table in the type that all of them get."""
    if name not in table.column_names or pa.types.is_null(table.schema.field(name).type):
        yield pa.nulls(len(table), kind)
    elif table.schema.field(name).type == kind:
        yield from table.column(name).chunks
    elif isinstance(kind, pa.JsonType):
        yield json_array(exact(table.column(name)))
    else:
        yield from table.column(name).cast(kind).chunks


def exact_columns(table: pa.Table) -> dict[str, list[Any]]:
    """The columns of a table as Python values."""
    return {name: exact(table.column(name)) for name in table.column_names}


def exact_rows(rows: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a data set as Python values, with all its columns."""
    columns = exact_columns(rows.with_format("arrow")[:])
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def exact(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python values: JSON to the last digit, objects without the nulls of a struct."""
    values = column.to_pylist()
    return [_exact(value, column.type) for value in values] if _nests(column.type) else values


def _nests(kind: pa.DataType) -> bool:
    """Whether there is JSON or a struct in a type."""
    if isinstance(kind, pa.JsonType) or pa.types.is_struct(kind):
        return True
    return _is_list(kind) and _nests(kind.value_type)


def _is_list(kind: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in checks)


def _exact(value: Any, kind: pa.DataType) -> Any:
    if value is None or not _nests(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if _is_list(kind):
        return [_exact(item, kind.value_type) for item in value]
    fields = {field.name: field.type for field in kind}
    return {key: _exact(item, fields[key]) for key, item in value.items() if item is not None}


def with_place(dataset: Dataset, source: str, *, after: int = 0) -> Dataset:
    """The data set with `source` and `row`; columns of its own of these names become `OWN`.

    Args:
        dataset: any rows.
        source: what to call where they come from.
        after: how many rows of the source precede them.
    """
    dataset, count = with_own(dataset, PLACE), len(dataset)
    numbers = pa.array(np.arange(after + 1, after + count + 1))
    dataset = dataset.add_column("source", pa.repeat(source, count))  # type: ignore[arg-type]
    return dataset.add_column("row", numbers)  # type: ignore[arg-type]


def with_own(dataset: Dataset, names: Iterable[str]) -> Dataset:
    """The data set with its columns of these names called as `OWN` says."""
    there = [name for name in names if name in dataset.column_names]
    dataset = dataset.remove_columns([OWN[n] for n in there if OWN[n] in dataset.column_names])
    return dataset.rename_columns({name: OWN[name] for name in there}) if there else dataset
