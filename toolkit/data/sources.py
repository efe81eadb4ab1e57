"""Where rows come from: a local file or folder, the Hub, a mixture, or Python objects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset

from toolkit.data import feedback
from toolkit.data.bad_rows import BadRows
from toolkit.data.columns import PLACE, listed, with_place
from toolkit.data.files import read_objects
from toolkit.data.formats import to_standard
from toolkit.data.held_out import leaked, split_off, split_rows
from toolkit.data.plans import FIELDS, is_conversational
from toolkit.data.splits import joined
from toolkit.data.tables import load_table
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import StageRecipe

__all__ = ["Rows", "load_rows", "load_table", "split_rows"]

Examples = Dataset | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Checked rows in one of the standard forms, with where they come from.

    Attributes:
        train: what is trained.
        eval: what is held out, if anything.
        format: "messages", "prompt_completion" or "text"; "ranked" for preferences; "prompt".
        provenance: one entry per data set: its name, revision, split, rows and fingerprint.
        said: what was converted, skipped or held out.
        bad: rows that break a rule, of which those found later are told too.
    """

    train: Dataset
    eval: Dataset | None
    format: str
    provenance: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    bad: BadRows = field(default_factory=BadRows)

    @property
    def notes(self) -> list[str]:
        """What there is to say about the rows, the bad ones that were left out included."""
        return [*self.said, *self.bad.lines()]

    @property
    def conversational(self) -> bool:
        """Whether the rows are messages, so that a chat template is needed."""
        return is_conversational(self.train, self.format)


def load_rows(
    recipe: StageRecipe,
    *,
    purpose: str = "sft",
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
) -> Rows:
    """The rows that a recipe names, or that Python gave, checked and split.

    Preferences and prompts are held out by prompt: rows of one prompt stay on one side.

    Args:
        recipe: `dataset_name` or `datasets`, their splits, `test_split_size`, `max_bad_rows`, `seed`.
        purpose: what the rows are for: "sft", "preference" or "prompt"; see `to_standard`.
        train_dataset: rows to use instead.
        eval_dataset: held-out rows to use instead.

    Raises:
        DataError: if rows are wrong, missing or of more than one form.
        RecipeError: if streaming is asked for, or evaluation without rows for it.
        HubError: if the Hub does not give the data.
    """
    for key in ("dataset_streaming", "streaming"):
        if recipe.get(key):
            raise RecipeError(
                f"{_where(recipe, key)}: {key} is not supported: rows are checked and counted "
                "before training; take a part instead, such as dataset_train_split: train[:100000]"
            )
    reader = _Reader(recipe, purpose)
    if train_dataset is not None:
        train = reader.objects(train_dataset, "train_dataset")
    elif recipe.get("datasets"):
        train = reader.mixture(recipe["datasets"])
    else:
        train = reader.named(recipe["dataset_train_split"])
    if eval_dataset is not None:
        held_out = reader.objects(eval_dataset, "eval_dataset")
    else:
        train, held_out = _hold_out(recipe, reader, train, from_python=train_dataset is not None)
    if held_out is not None:
        reader.notes += leaked(train, held_out, reader.form)
    return Rows(train, held_out, reader.form, reader.provenance, reader.notes, reader.bad)


class _Reader:
    """Reads data sets one after another into one form, and remembers what was said of each."""

    def __init__(self, recipe: StageRecipe, purpose: str):
        self.recipe = recipe
        self.purpose = purpose
        self.form = ""
        self.first: tuple[str, str] | None = None  # the form in words, and what is called so
        self.provenance: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.bad = BadRows(recipe.get("max_bad_rows", 0))

    def named(self, split: str) -> Dataset:
        """One split of `dataset_name`."""
        recipe = self.recipe
        table, origin = load_table(
            recipe["dataset_name"],
            config=recipe["dataset_config"],
            split=split,
            revision=recipe.get("dataset_revision"),
            bad=self.bad,
        )
        return self._standard(table, origin)

    def objects(self, rows: Any, name: str) -> Dataset:
        """Rows that Python gave."""
        if isinstance(rows, IterableDataset | Mapping | str | bytes):
            raise DataError(
                f"{name}: expected a datasets.Dataset or a list of mappings, found "
                f"{type(rows).__name__}; give one split of it, not streamed"
            )
        table = with_place(rows, name) if isinstance(rows, Dataset) else read_objects(rows, name)
        if not len(table):
            raise DataError(f"{name}: there are no rows")
        origin = {"dataset_name": name, "revision": None, "rows": len(table)}
        return self._standard(table, origin | {"fingerprint": table._fingerprint})

    def mixture(self, entries: Sequence[Mapping[str, Any]]) -> Dataset:
        """The entries of `datasets`, one after another, in their fractions.

        Fractions are shares of the result: they are normalised, no row is repeated, and of each
        data set the first `round(share * total)` rows are kept, as in TRL.
        """
        if self.recipe.get("dataset_revision"):
            raise RecipeError(
                f"{_where(self.recipe, 'dataset_revision')}: dataset_revision goes with "
                "dataset_name, not with datasets"
            )
        weights = self._weights([entry.get("fraction") for entry in entries])
        tables = []
        for entry in entries:
            table, origin = load_table(
                entry["path"],
                config=entry.get("name"),
                split=entry.get("split", "train"),
                data_dir=entry.get("data_dir"),
                data_files=entry.get("data_files"),
                bad=self.bad,
            )
            if entry.get("columns"):
                table = _select_columns(table, entry["columns"], entry["path"])
            tables.append((table, origin))
        if weights:
            total = min(len(t) / w for (t, _), w in zip(tables, weights, strict=True) if w > 0)
            tables = [
                self._first_rows(table, origin, round(weight * total))
                for (table, origin), weight in zip(tables, weights, strict=True)
            ]
        standard = [self._standard(table, origin) for table, origin in tables if len(table)]
        return joined(standard, "datasets")

    def _weights(self, fractions: list[float | None]) -> list[float]:
        """The fractions as shares of one; [] if none is given."""
        given = [fraction for fraction in fractions if fraction is not None]
        if not given:
            return []
        total = sum(given)
        if len(given) < len(fractions) or min(given) < 0 or not 0 < total < math.inf:
            raise RecipeError(
                f"{_where(self.recipe, 'datasets')}: fraction is a number from 0 up, given for all "
                f"entries of datasets or for none; found {listed(fractions)}"
            )
        return [fraction / total for fraction in given]

    def _first_rows(
        self, table: Dataset, origin: dict[str, Any], count: int
    ) -> tuple[Dataset, dict[str, Any]]:
        self.notes.append(
            f"{origin['dataset_name']}: {count:,} of {len(table):,} rows are mixed in"
        )
        return table.select(range(count)), origin | {"used": count}

    def _standard(self, table: Dataset, origin: dict[str, Any]) -> Dataset:
        name = origin["dataset_name"]
        text_field = None
        if self.recipe.is_written("dataset_text_field"):
            text_field = self.recipe["dataset_text_field"]
        if feedback.is_feedback(table.column_names):
            if self.purpose == "preference":
                table, counts = feedback.as_preferences(table, name, self.bad)
                self.notes.append(f"{name}: {counts.line()}")
                origin = origin | {"feedback": asdict(counts)}
            elif self.purpose == "sft" and feedback.rates(table):
                self.notes.append(f"warning: {name}: {feedback.IMITATED}")
        standard, self.form, notes = to_standard(
            table,
            origin=name,
            text_field=text_field,
            purpose=self.purpose,
            bad=self.bad,
            num_proc=self.recipe.get("dataset_num_proc"),
        )
        words = " and ".join(FIELDS[self.form])
        if "prompt" in FIELDS[self.form]:
            is_chat = is_conversational(standard, self.form)
            words += " as messages" if is_chat else " as text"
        self.first = self.first or (words, name)
        if self.first[0] != words:
            raise DataError(
                f"{name} has {words}, but {self.first[1]} has {self.first[0]}; bring them into one "
                "form"
            )
        self.provenance.append({key: value for key, value in origin.items() if key != "notes"})
        self.notes += [n for n in [*origin.get("notes", ()), *notes] if n not in self.notes]
        return standard


def _where(recipe: StageRecipe, key: str) -> str:
    """The place of a key, for a message."""
    return recipe.where.get(key, "recipe")


def _select_columns(table: Dataset, columns: Sequence[str], name: str) -> Dataset:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        found = listed(column for column in table.column_names if column not in PLACE)
        raise DataError(f"{name}: there is no column {missing[0]!r}; found {found}")
    return table.select_columns([*columns, *(c for c in PLACE if c not in columns)])


def _hold_out(
    recipe: StageRecipe, reader: _Reader, train: Dataset, *, from_python: bool
) -> tuple[Dataset, Dataset | None]:
    """The training rows, and those to evaluate on where the recipe asks for it."""
    size, evaluated = recipe.get("test_split_size"), recipe.get("eval_strategy", "no") != "no"
    if size is not None:
        if recipe.is_written("dataset_test_split"):
            raise RecipeError(
                f"{_where(recipe, 'test_split_size')}: test_split_size and dataset_test_split are "
                "both given: held-out rows are drawn from the training rows, or have a split of "
                "their own; write one of the two"
            )
        train, held_out, count = split_off(train, size, form=reader.form, seed=recipe["seed"])
        unused = "" if evaluated else "; measured once, at the end"
        reader.notes.append(f"{count} held out by test_split_size{unused}")
        return train, held_out
    if not evaluated:
        return train, None
    if from_python or recipe.get("datasets"):
        raise RecipeError(
            f"{_where(recipe, 'eval_strategy')}: there are no rows to evaluate on; set "
            "test_split_size: 0.05"
        )
    return train, reader.named(recipe["dataset_test_split"])
