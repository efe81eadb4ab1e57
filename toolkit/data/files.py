"""Rows from local files: JSONL, JSON, CSV, TSV and Parquet, read so that an error names the line.

Every table has two columns more than its file: `source`, what to call the file in a message, and
`row`, the line (JSONL, CSV) or the position (JSON, Parquet) counted from one.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from toolkit.errors import DataError

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
READABLE = (*LINES, ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".zst", ".xz", ".bz2", ".zip", ".gz", ".7z", ".tar")
PLACE = ("source", "row")
"""The columns that say where a row comes from."""

Row = tuple[int, dict[str, Any]]


def suffix_of(path: Path) -> str:
    """The suffix that decides how a file is read, such as `.jsonl.gz`; "" if there is none."""
    name = path.name.lower()
    known = [suffix for suffix in (*READABLE, *COMPRESSED) if name.endswith(suffix)]
    return max(known, key=len, default=path.suffix.lower())


def read_file(path: Path, source: str) -> tuple[Dataset, list[str]]:
    """Every row of one file.

    Args:
        path: the file; its suffix says how to read it.
        source: what messages call it.

    Returns:
        The rows with `source` and `row`, and what there is to say about them.

    Raises:
        DataError: if the file is empty, of a kind that is not read, or broken; with its line.
    """
    suffix, notes = suffix_of(path), list[str]()
    if suffix not in READABLE:
        unpack = ": unpack it first" if suffix in COMPRESSED else ""
        raise DataError(
            f"{source}: cannot read {suffix or 'a file without a suffix'}{unpack}; expected one of "
            f"{', '.join(READABLE)}"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{source}: the file is empty")
        if suffix == ".parquet":
            table = _parquet(path, source)
        elif suffix in LINES:
            table = _from_rows(_json_lines(path, source, notes), source)
        elif suffix == ".json":
            table = _from_rows(_json_document(path, source), source)
        else:
            table = _from_rows(_separated(path, source, "\t" if suffix == ".tsv" else ","), source)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
    if not len(table):
        raise DataError(f"{source}: the file has no rows")
    return table, notes


def read_objects(rows: Iterable[Mapping[str, Any]], source: str) -> Dataset:
    """A table of Python mappings, numbered from one.

    Raises:
        DataError: if an element is no mapping, or there is none.
    """

    def numbered() -> Iterator[Row]:
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                _fail(source, number, f"expected a mapping, found {kind_of(row)}")
            _encodable(row, source, number)
            yield number, dict(row)

    table = _from_rows(numbered(), source)
    if not len(table):
        raise DataError(f"{source}: there are no rows")
    return table


def with_place(dataset: Dataset, source: str) -> Dataset:
    """The data set with `source` and `row`; a column of its own of that name is replaced."""
    dataset = dataset.remove_columns([c for c in PLACE if c in dataset.column_names])
    count = len(dataset)
    names = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [source])
    dataset = dataset.add_column("source", names.cast(pa.string()))  # type: ignore[arg-type]
    return dataset.add_column("row", pa.array(range(1, count + 1), pa.int64()))  # type: ignore[arg-type]


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
    return "a list" if isinstance(value, Sequence) else type(value).__name__


def _fail(source: str, line: int, what: str) -> NoReturn:
    raise DataError(f"{source}, row {line}: {what}")


def _from_rows(rows: Iterable[Row], source: str) -> Dataset:
    """A table whose columns are the union of all keys; what Arrow would merge is kept as JSON."""
    numbers: list[int] = []
    columns: dict[str, list[Any]] = {}
    for number, row in rows:
        for key in row.keys() - columns.keys():
            columns[key] = [None] * len(numbers)
        numbers.append(number)
        for key, values in columns.items():
            values.append(row.get(key))
    arrays = {name: _array(columns[name]) for name in sorted(columns) if name not in PLACE}
    arrays |= {"source": pa.array([source] * len(numbers), pa.string())}
    arrays |= {"row": pa.array(numbers, pa.int64())}
    return Dataset(pa.table(arrays))  # type: ignore[arg-type]


def _array(values: list[Any]) -> pa.Array:
    """A column: plain where all values agree, else JSON, which keeps each as it is."""
    kinds = {type(value) for value in values if value is not None}
    plain = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    if len(kinds) == 1 and (kind := kinds.pop()) in plain:
        if kind is not int or all(v is None or abs(v) < 2**63 for v in values):
            return pa.array(values, plain[kind])
    return json_array(values)


def json_array(values: Iterable[Any]) -> pa.Array:
    """A column of JSON text, one value each.

    Arrow's structs would give every object all keys that any object has, with nulls; and what
    `datasets` encodes by itself is rounded to ten digits.
    """
    texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(texts, pa.json_())


def exact_columns(table: pa.Table) -> dict[str, list[Any]]:
    """The columns of a table as Python values, with JSON read to the last digit."""
    found = {}
    for name in table.column_names:
        column, values = table.column(name), table.column(name).to_pylist()
        if isinstance(column.type, pa.JsonType):
            values = [None if text is None else json.loads(text) for text in values]
        found[name] = values
    return found


def _text_lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered; the mark that some editors put at its start is left out.

    Raises:
        DataError: if it has another encoding; the message names it and the line.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as stream:
        number = 0
        try:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in raw[:4]:
                        _fail(source, 1, "the file is UTF-16 or UTF-32; save it as UTF-8")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"0x{error.object[error.start]:02x}"
            what = f"byte {byte} is not UTF-8 (perhaps Latin-1 or Windows-1252); save it as UTF-8"
            raise DataError(f"{source}, row {number}: {what}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{source}, row {number + 1}: the gzip stream is broken") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON; write a number or null")


def _encodable(value: Any, source: str, line: int) -> None:
    """Check that every text in a value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        _fail(source, line, f"half of a surrogate pair, which is no character ({error.reason})")


def _parsed(text: str, source: str, line: int) -> Any:
    """One JSON value.

    Raises:
        DataError: with the line and what is wrong there.
    """
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant)
        if "\\ud" in text or "\\uD" in text:
            _encodable(value, source, line)
    except json.JSONDecodeError as error:
        place = f"{source}, row {line + error.lineno - 1}"
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise DataError(f"{place}: the JSON ends too early; is it cut off?") from error
        raise DataError(f"{place}, character {error.colno}: not JSON: {error.msg}") from error
    except RecursionError:
        _fail(source, line, "the JSON is nested too deeply")
    except ValueError as error:
        _fail(source, line, str(error))
    return value


def _json_lines(path: Path, source: str, notes: list[str]) -> Iterator[Row]:
    blank = 0
    for number, text in _text_lines(path, source):
        if not text.strip():
            blank += 1
            continue
        if number == 1 and text.strip() in {"[", "{"}:
            _fail(source, number, "one JSON document over several lines; name the file .json")
        value = _parsed(text, source, number)
        if not isinstance(value, dict):
            _fail(
                source, number, f"expected an object, {{…}}, on each line, found {kind_of(value)}"
            )
        yield number, value
    if blank:
        notes.append(f"{source}: {blank:,} blank line(s) skipped")


def _json_document(path: Path, source: str) -> Iterator[Row]:
    text = "".join(line for _, line in _text_lines(path, source))
    if not text.strip():
        return
    value = _parsed(text, source, 1)
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        chosen = "data" if "data" in lists else lists[0] if len(lists) == 1 else None
        if chosen is None:
            raise DataError(
                f"{source}: expected a list of objects, or an object with one list; found an "
                f"object with the keys {', '.join(value) or '(none)'}"
            )
        value = value[chosen]
    if not isinstance(value, list):
        raise DataError(f"{source}: expected a list of objects, found {kind_of(value)}")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            _fail(source, number, f"expected an object, found {kind_of(row)}")
        yield number, row


def _separated(path: Path, source: str, delimiter: str) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header; every cell is text, as it stands."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 KiB
    lines = (line for _, line in _text_lines(path, source))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 1
    try:
        for cells in reader:
            start, number = number, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header) or "" in header:
                    _fail(source, start, f"the header needs distinct names, found {header}")
                continue
            if len(cells) != len(header):
                _fail(source, start, f"expected {len(header)} cells, found {len(cells)}")
            yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        _fail(source, number, f"not {'TSV' if delimiter != ',' else 'CSV'}: {error}")


def _parquet(path: Path, source: str) -> Dataset:
    try:
        return with_place(Dataset(pq.read_table(path, memory_map=True)), source)  # type: ignore[arg-type]
    except (pa.ArrowException, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{source}: not a Parquet file that can be read: {first}") from error
