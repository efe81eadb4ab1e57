"""Parts of a data set by name: `train`, `train[:10%]`, `train+test`."""

import re
from collections.abc import Iterable, Mapping

from datasets import Dataset, ReadInstruction, concatenate_datasets

from toolkit.data.columns import listed
from toolkit.errors import DataError, ToolkitError


def splits_in(split: str) -> list[str]:
    """The splits that are named in what `datasets` takes as a split, each once."""
    return list(dict.fromkeys(re.findall(r"(?:^|\+)\s*([\w.-]+)", split)))


def check_split(
    name: str, split: str, found: Iterable[str], *, error: type[ToolkitError] = DataError
) -> None:
    """Check that a data set has every split that is named.

    Raises:
        DataError: or what `error` says, with the splits that it has.
    """
    known = sorted(map(str, found))
    missing = [repr(word) for word in splits_in(split) if word not in known]
    if missing:
        raise error(
            f"{name}: there is no split {' and '.join(missing)}; found {listed(known)}: to hold "
            "rows out of the training rows, set test_split_size: 0.05"
        )


def part_of(tables: Mapping[str, Dataset], split: str, name: str) -> Dataset:
    """The rows that a split names, by the rules of `datasets`.

    Args:
        tables: the rows of every split.
        split: such as `train[:1000]`.
        name: what messages call the data set.

    Raises:
        DataError: if there is no such split, or it is written wrongly.
    """
    check_split(name, split, tables)
    sizes = {key: len(table) for key, table in tables.items()}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        words = " ".join(str(error).split())
        raise DataError(f"{name}: cannot read split {split!r}: {words}") from error
    picked = []
    for part in parts:
        table = tables[part.splitname]
        is_whole = (part.from_, part.to) == (0, len(table))
        picked.append(table if is_whole else table.select(range(part.from_, part.to)))
    return joined(picked, name)


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
        raise DataError(f"{name}: its parts have columns of different types: {first}") from error
