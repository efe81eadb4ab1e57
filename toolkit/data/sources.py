"""Where rows come from: a local file or folder, the Hub, a mixture, or Python objects."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, Json

from toolkit.data.files import PLACE, read_objects, with_place
from toolkit.data.formats import to_standard
from toolkit.data.tables import joined, load_table
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import StageRecipe

__all__ = ["Rows", "load_rows", "load_table", "split_rows"]

Examples = Dataset | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Checked rows in one of the three standard forms, with where they come from.

    Attributes:
        train: what is trained.
        eval: what is held out, if anything.
        format: "messages", "prompt_completion" or "text".
        provenance: one entry per data set: its name, revision, split, rows and fingerprint.
        notes: what was converted, skipped or held out.
    """

    train: Dataset
    eval: Dataset | None
    format: str
    provenance: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def conversational(self) -> bool:
        """Whether the rows are messages, so that a chat template is needed."""
        return any(isinstance(kind, Json) for kind in self.train.features.values())


def load_rows(
    recipe: StageRecipe,
    *,
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
) -> Rows:
    """The rows that a recipe names, or that Python gave, checked and split.

    Args:
        recipe: `dataset_name` or `datasets`, their splits, `test_split_size`, `seed`.
        train_dataset: rows to use instead.
        eval_dataset: held-out rows to use instead.

    Raises:
        DataError: if rows are wrong, missing or of more than one form.
        RecipeError: if streaming is asked for, or evaluation without rows for it.
        HubError: if the Hub does not give the data.
    """
    for key in ("dataset_streaming", "streaming"):
        if recipe[key]:
            where = recipe.where.get(key, "recipe")
            raise RecipeError(
                f"{where}: {key} is not supported: rows are checked and counted before training; "
                "take a part instead, such as dataset_train_split: train[:100000]"
            )
    reader = _Reader(recipe)
    if train_dataset is not None:
        train = reader.objects(train_dataset, "train_dataset")
    elif recipe["datasets"]:
        train = reader.mixture([_entry(item) for item in recipe["datasets"]])
    else:
        train = reader.named(recipe["dataset_train_split"])
    train, held_out = _hold_out(recipe, reader, train, eval_dataset, train_dataset is not None)
    assert reader.format is not None
    if held_out is not None:
        reader.notes += _leaked(train, held_out)
    return Rows(train, held_out, reader.format, reader.provenance, reader.notes)


class _Reader:
    """Reads data sets one after another into one form, and remembers what was said of each."""

    def __init__(self, recipe: StageRecipe):
        self.recipe = recipe
        self.format: str | None = None
        self.named_first = ""
        self.provenance: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def named(self, split: str) -> Dataset:
        """One split of `dataset_name`."""
        recipe = self.recipe
        table, origin = load_table(
            recipe["dataset_name"],
            config=recipe["dataset_config"],
            split=split,
            revision=recipe["dataset_revision"],
        )
        return self._standard(table, origin)

    def objects(self, rows: Any, name: str) -> Dataset:
        """Rows that Python gave."""
        if isinstance(rows, DatasetDict | IterableDataset):
            raise DataError(
                f"{name}: expected a datasets.Dataset or a list of mappings, found "
                f"{type(rows).__name__}; give one split, not streamed"
            )
        table = with_place(rows, name) if isinstance(rows, Dataset) else read_objects(rows, name)
        origin = {"dataset_name": name, "revision": None, "rows": len(table)}
        return self._standard(table, origin | {"fingerprint": table._fingerprint})

    def mixture(self, entries: list[dict[str, Any]]) -> Dataset:
        """The entries of `datasets`, one after another, in their fractions.

        Fractions are shares of the result: they are normalised, no row is repeated, and of each
        data set the first `round(share * total)` rows are kept, as in TRL.
        """
        if self.recipe["dataset_revision"]:
            where = self.recipe.where.get("dataset_revision", "recipe")
            raise RecipeError(
                f"{where}: dataset_revision goes with dataset_name, not with datasets"
            )
        shares = [entry["fraction"] for entry in entries]
        given = [share is not None for share in shares]
        if any(given) and (not all(given) or min(shares) < 0 or not sum(shares) > 0):
            raise DataError(
                "datasets: fraction is given for all entries or for none, and none is below zero; "
                f"found {shares}"
            )
        tables = []
        for entry in entries:
            table, origin = load_table(
                entry["path"], config=entry["name"], split=entry["split"],
                data_dir=entry["data_dir"], data_files=entry["data_files"],
            )  # fmt: skip
            if entry["columns"]:
                table = _select_columns(table, entry["columns"], entry["path"])
            tables.append((table, origin))
        if any(given):
            weights = [share / sum(shares) for share in shares]
            total = min(len(t) / w for (t, _), w in zip(tables, weights, strict=True) if w > 0)
            sizes = [round(weight * total) for weight in weights]
            tables = [
                (table.select(range(size)), origin | {"used": size})
                for (table, origin), size in zip(tables, sizes, strict=True)
            ]
            self.notes += [
                f"{origin['dataset_name']}: {len(table):,} of {origin['rows']:,} rows in the mixture"
                for table, origin in tables
            ]
        standard = [self._standard(table, origin) for table, origin in tables if len(table)]
        return joined(standard, "datasets")

    def _standard(self, table: Dataset, origin: dict[str, Any]) -> Dataset:
        name = origin["dataset_name"]
        field_name = None
        if self.recipe.is_written("dataset_text_field"):
            field_name = self.recipe["dataset_text_field"]
        standard, form, notes = to_standard(table, origin=name, text_field=field_name)
        if self.format not in (None, form):
            raise DataError(
                f"{name} has {form} rows, but {self.named_first} has {self.format} rows; bring "
                "them into one form"
            )
        self.format, self.named_first = form, self.named_first or name
        self.provenance.append({key: value for key, value in origin.items() if key != "notes"})
        self.notes += [n for n in [*origin.get("notes", ()), *notes] if n not in self.notes]
        return standard


def _entry(item: Any) -> dict[str, Any]:
    """One entry of `datasets` with all of its fields, from a mapping or TRL's dataclass."""
    names = ("path", "name", "data_dir", "data_files", "split", "columns", "fraction")
    given = dict(item) if isinstance(item, Mapping) else {n: getattr(item, n) for n in names}
    unknown = [key for key in given if key not in names]
    if unknown or "path" not in given:
        wrong = f"unknown key {unknown[0]!r}" if unknown else "no path"
        raise RecipeError(f"datasets: {wrong} in an entry; its keys are {', '.join(names)}")
    return dict.fromkeys(names) | given | {"split": given.get("split") or "train"}


def _select_columns(table: Dataset, columns: Sequence[str], name: str) -> Dataset:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{name}: there is no column {missing[0]!r}; found {', '.join(table.column_names)}"
        )
    return table.select_columns([*columns, *(c for c in PLACE if c not in columns)])


def _hold_out(
    recipe: StageRecipe,
    reader: _Reader,
    train: Dataset,
    eval_dataset: Examples | None,
    from_python: bool,
) -> tuple[Dataset, Dataset | None]:
    """The training rows, and those to evaluate on where the recipe asks for it."""
    size = recipe["test_split_size"]
    evaluated = str(getattr(recipe["eval_strategy"], "value", recipe["eval_strategy"])) != "no"
    if eval_dataset is not None:
        return train, reader.objects(eval_dataset, "eval_dataset")
    if size is not None:
        train, held_out = split_rows(train, size, seed=recipe["seed"])
        unused = "" if evaluated else '; eval_strategy is "no", so nothing is measured on them'
        reader.notes.append(f"{len(held_out):,} rows held out by test_split_size{unused}")
        return train, held_out
    if not evaluated:
        return train, None
    if from_python or recipe["datasets"]:
        where = recipe.where.get("eval_strategy", "eval_strategy")
        raise RecipeError(f"{where}: there are no rows to evaluate on; set test_split_size: 0.05")
    return train, reader.named(recipe["dataset_test_split"])


def split_rows(rows: Dataset, size: float, *, seed: int) -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows, each in their order; the same for any number of processes.

    Args:
        rows: all of them.
        size: a share below one, or a number of rows.
        seed: which rows are drawn.

    Raises:
        DataError: if one of the two would be empty.
    """
    count = int(size) if size >= 1 else round(size * len(rows))
    if not 0 < count < len(rows):
        raise DataError(
            f"test_split_size {size} of {len(rows):,} rows would hold out {count:,}; both sides "
            "need at least one row"
        )
    drawn = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(drawn[count:])), rows.select(np.sort(drawn[:count]))


def _leaked(train: Dataset, held_out: Dataset) -> list[str]:
    """A warning if rows that are held out are also trained."""
    columns = [c for c in sorted(held_out.column_names) if c not in PLACE]

    def keys(rows: Dataset) -> Iterator[bytes]:
        for table in rows.select_columns(columns).with_format("arrow").iter(1000):
            for row in zip(*(table.column(c).to_pylist() for c in columns), strict=True):
                yield hashlib.blake2b(repr(row).encode(), digest_size=12).digest()

    trained = set(keys(train))
    both = sum(key in trained for key in keys(held_out))
    if not both:
        return []
    return [f"warning: {both:,} of the {len(held_out):,} held-out rows are training rows too"]
