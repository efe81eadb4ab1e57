"""Rows from local files: JSONL, JSON, CSV, TSV and Parquet, read so that an error names the line.

Every table has two columns more than its file: `source`, what to call the file in a message, and
`row`, the line (JSONL, CSV) or the position (JSON, Parquet) counted from one.
"""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from toolkit.data.bad_rows import BadRows
from toolkit.data.columns import Row, kind_of, listed, tables_of, united, with_place
from toolkit.errors import DataError

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
READABLE = (*LINES, ".json", ".csv", ".tsv", ".parquet")
ONE_A_LINE = 'expected one row a line, such as {"messages": […]}'
PARQUET_ROWS = 10_000  # at a time
COMPRESSED = (".zst", ".xz", ".bz2", ".zip", ".gz", ".7z", ".tar")


def suffix_of(path: Path) -> str:
    """The suffix that decides how a file is read, such as `.jsonl.gz`; "" if there is none."""
    name = path.name.lower()
    known = [suffix for suffix in (*READABLE, *COMPRESSED) if name.endswith(suffix)]
    return max(known, key=len, default=path.suffix.lower())


def read_file(path: Path, source: str, notes: list[str], bad: BadRows) -> Iterator[pa.Table]:
    """Every row of one file, some thousands at a time.

    Args:
        path: the file; its suffix says how to read it. Of one JSON document the whole is read.
        source: what messages call it.
        notes: takes what there is to say about the rows.
        bad: takes rows that cannot be read.

    Returns:
        Tables of rows with `source` and `row`; their columns may differ.

    Raises:
        DataError: if the file is empty, of a kind that is not read, or broken; with its line.
    """
    suffix, found = suffix_of(path), 0
    if suffix not in READABLE:
        unpack = ": unpack it first" if suffix in COMPRESSED else ""
        raise DataError(
            f"{source}: cannot read {suffix or 'a file without a suffix'}{unpack}; expected one of "
            f"{', '.join(READABLE)}"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{source}: the file is empty; {ONE_A_LINE}")
        for table in _tables(path, source, suffix, notes, bad):
            found += len(table)
            yield table
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise DataError(f"{source}: the file has no rows; {ONE_A_LINE}")


def _tables(
    path: Path, source: str, suffix: str, notes: list[str], bad: BadRows
) -> Iterator[pa.Table]:
    if suffix == ".parquet":
        return _parquet(path, source)
    if suffix in LINES or (suffix == ".json" and _is_lines(path, source)):
        rows = _json_lines(path, source, notes, bad)
    elif suffix == ".json":
        rows = _json_document(path, source, bad)
    else:
        rows = _separated(path, source, "\t" if suffix == ".tsv" else ",", notes, bad)
    return tables_of(rows, source)


def read_objects(rows: Any, source: str) -> Dataset:
    """A table of Python mappings, numbered from one.

    Raises:
        DataError: if they are no mappings of text, numbers, lists and mappings, or there is none.
    """

    def numbered() -> Iterator[Row]:
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                _fail(source, number, f"expected a mapping, found {kind_of(row)}")
            if not all(isinstance(key, str) for key in row):
                _fail(source, number, f"expected names as keys, found {listed(row)}")
            _check_plain(row, source, number)
            yield number, dict(row)

    if not isinstance(rows, Iterable):
        raise DataError(f"{source}: expected a list of mappings, found {kind_of(rows)}")
    tables = list(tables_of(numbered(), source))
    if not tables:
        raise DataError(f"{source}: there are no rows")
    return Dataset(united(tables, source))  # type: ignore[arg-type]


def _fail(source: str, number: int, what: str) -> NoReturn:
    raise DataError(f"{source}, row {number}: {what}")


def _byte_lines(path: Path, source: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, numbered; the mark that some editors put at its start is left out.

    Raises:
        DataError: if it is UTF-16 or UTF-32, or its compression is broken.
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
                yield number, raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = "the gzip stream is broken; compress the file again"
            raise DataError(f"{source}, row {number + 1}: {what}") from error


def _decoded(raw: bytes, source: str, number: int) -> str:
    """A line of UTF-8.

    Raises:
        DataError: if it has another encoding; the message names the byte and the line.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        what = f"byte {byte} is not UTF-8 (perhaps Latin-1 or Windows-1252); save it as UTF-8"
        raise DataError(f"{source}, row {number}: {what}") from error


def _text_lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered."""
    for number, raw in _byte_lines(path, source):
        yield number, _decoded(raw, source, number)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON; write a number or null")


def _finite(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise ValueError(f"the number {word[:20]} is too large")
    return number


def _check_plain(value: Any, source: str, number: int) -> None:
    """Check that a value can be written as JSON, in UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        _fail(source, number, f"half of a surrogate pair, which is no character ({error.reason})")
    except (TypeError, ValueError, RecursionError) as error:
        _fail(source, number, f"expected text, numbers, lists and mappings: {error}")


def _parsed(text: str, source: str, number: int, *, unit: str = "row") -> Any:
    """One JSON value.

    Raises:
        DataError: with the line and what is wrong there.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_pairs, parse_constant=_no_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        place = f"{source}, {unit} {number + error.lineno - 1}"
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise DataError(f"{place}: the JSON ends too early; is it cut off?") from error
        what = error.msg.removesuffix(" at")
        raise DataError(f"{place}, character {error.colno}: not JSON: {what}") from error
    except RecursionError:
        _fail(source, number, "the JSON is nested too deeply")
    except ValueError as error:
        _fail(source, number, str(error))
    if "\\ud" in text or "\\uD" in text:
        _check_plain(value, source, number)
    return value


def _json_lines(path: Path, source: str, notes: list[str], bad: BadRows) -> Iterator[Row]:
    blank = 0
    for number, raw in _byte_lines(path, source):
        line = raw.rstrip(b" \t\r\n")  # what is missing at its end is not said of the next
        if not line.strip():
            blank += 1
            continue
        if line.strip() in {b"[", b"{"}:
            _fail(source, number, "one JSON document over several lines; name the file .json")
        try:
            row = _object(_decoded(line, source, number), source, number)
        except DataError as error:
            bad.add(source, number, str(error))
            continue
        yield number, row
    _note_blank(blank, source, notes)


def _object(text: str, source: str, number: int) -> dict[str, Any]:
    """The object that a line holds."""
    value = _parsed(text, source, number)
    if not isinstance(value, dict):
        what = kind_of(value)
        _fail(source, number, f"expected an object, {{…}}, on each line, found {what}")
    return value


def _note_blank(blank: int, source: str, notes: list[str]) -> None:
    if blank:
        notes.append(f"{source}: {blank:,} blank line{'s' * (blank > 1)} skipped")


def _is_lines(path: Path, source: str) -> bool:
    """Whether a .json file is JSON Lines: its first two lines with text are an object each."""
    texts = (text.strip() for _, text in _text_lines(path, source))
    first = list(islice((text for text in texts if text), 2))
    return len(first) == 2 and all(text.startswith("{") for text in first) and first[0][-1] == "}"


def _json_document(path: Path, source: str, bad: BadRows) -> Iterator[Row]:
    text = "".join(line for _, line in _text_lines(path, source))
    if not text.strip():
        return
    value = _parsed(text, source, 1, unit="line")
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        chosen = "data" if "data" in lists else lists[0] if len(lists) == 1 else None
        if chosen is None:
            raise DataError(
                f"{source}: expected a list of objects, or an object with one list; found an "
                f"object with the keys {listed(value)}"
            )
        value = value[chosen]
    if not isinstance(value, list):
        raise DataError(f"{source}: expected a list of objects, found {kind_of(value)}")
    for number, row in enumerate(value, 1):
        if isinstance(row, dict):
            yield number, row
        else:
            what = f"expected an object, found {kind_of(row)}"
            bad.add(source, number, f"{source}, row {number}: {what}")


def _separated(
    path: Path, source: str, delimiter: str, notes: list[str], bad: BadRows
) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header; every cell is text, as it stands."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 KiB
    lines = (line for _, line in _text_lines(path, source))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header, number, blank = list[str](), 1, 0
    try:
        for cells in reader:
            start, number = number, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                blank += 1
            elif not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header) or "" in header:
                    _fail(source, start, f"the header needs distinct names, found {header}")
            elif len(cells) != len(header):
                what = f"expected {len(header)} cells, found {len(cells)}"
                bad.add(source, start, f"{source}, row {start}: {what}")
            else:
                yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        _fail(source, number, f"not {'TSV' if delimiter != ',' else 'CSV'}: {error}")
    _note_blank(blank, source, notes)


def _parquet(path: Path, source: str) -> Iterator[pa.Table]:
    count = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                rows = pa.Table.from_batches([batch])
                dataset = Dataset(rows, fingerprint="file")  # type: ignore[arg-type]
                yield with_place(dataset, source, after=count).data.table
                count += len(rows)
    except (pa.ArrowException, ValueError, TypeError, KeyError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"{source}: not a Parquet file that can be read: {first}") from error
