"""Any rows in a standard form: `messages`, `prompt`+`completion`, `text`, ranked answers, `prompt`.

Every row is looked at, not the first alone. Columns of other conventions (ShareGPT, Alpaca, question
and answer) are converted, with a note. Messages and tools are held as JSON columns, which read as
lists.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, Features, Json, Value

from toolkit.data import preferences, prompts, supervised
from toolkit.data.bad_rows import BROKEN, BadRows
from toolkit.data.columns import OWN, PLACE, exact_columns, json_array, listed, with_own, with_place
from toolkit.data.key import code_digest
from toolkit.data.once import mapped
from toolkit.data.plans import FIELDS, TOOLS, Plan
from toolkit.data.rules import BrokenRule, tools_of
from toolkit.errors import DataError

__all__ = ["FIELDS", "TOOLS", "to_standard"]

ALWAYS_JSON = ("answers", "ranks")
LONG_NUMBER = re.compile(r"\d{19}")


class Purpose(NamedTuple):
    """What rows are read for.

    Attributes:
        plans: every way to read rows with some columns, the most telling first.
        missing: why there is no plan, and what was expected.
        dropped: which of the columns that no plan reads are left out; None for all of them.
    """

    plans: Callable[[Sequence[str], str | None], list[Plan]]
    missing: Callable[[Sequence[str], str | None], str]
    dropped: frozenset[str] | None = None


PURPOSES = {
    "sft": Purpose(supervised.possible_plans, supervised.what_is_missing),
    "preference": Purpose(preferences.possible_plans, preferences.what_is_missing),
    "prompt": Purpose(prompts.possible_plans, prompts.what_is_missing, prompts.TAKEN),
}


def to_standard(
    dataset: Dataset,
    *,
    origin: str,
    text_field: str | None = None,
    purpose: str = "sft",
    bad: BadRows | None = None,
    num_proc: int | None = None,
) -> tuple[Dataset, str, list[str]]:
    """The rows in a standard form, each of them checked.

    Args:
        dataset: any rows; `source` and `row`, if there, say where each comes from.
        origin: what the data set is called.
        text_field: the column to train on as text, unless there are messages or prompts.
        purpose: "sft" for `messages`, `prompt`+`completion` or `text`; "preference" for ranked
            answers; "prompt" for `prompt` and all other columns as they are.
        bad: takes rows that break a rule; without it, the first of them is an error.
        num_proc: processes that share the work; the result does not depend on it.

    Returns:
        The rows with the columns of their form (see `FIELDS`), `tools` where given, `dataset`,
        `source` and `row`; the form's name; and notes on what was converted and what is not used.

    Raises:
        DataError: for the first row that breaks a rule, with its file, row, column and rule.
    """
    if not set(PLACE) <= set(dataset.column_names):
        dataset = with_place(dataset, origin)
    dataset = with_own(dataset, ["dataset"])
    columns = [name for name in dataset.column_names if name not in PLACE]
    wanted = PURPOSES[purpose]
    plans = wanted.plans(columns, text_field)
    if not plans:
        raise DataError(f"{origin}: {wanted.missing(columns, text_field)}")
    plan = plans[0]
    read = [name for name in columns if any(name in (*p.needed, *p.optional) for p in plans)]
    features, bad = _features(dataset, plan), bad or BadRows()
    carried = _carried(columns, wanted, features)
    dataset = dataset.select_columns([*dict.fromkeys([*read, *carried]), *PLACE])
    features |= {name: dataset.features[name] for name in carried}
    given = {"plans": plans, "kinds": features, "carried": carried, "origin": origin}
    given["bad"] = bad
    standard = mapped(
        dataset.with_format("arrow"),
        _convert,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        fn_kwargs=given,
        fingerprint=_fingerprint(dataset, plan, features, origin),
        num_proc=num_proc,
        desc="reading rows",
    )
    used = {*plan.needed, *plan.optional, *carried} - ({TOOLS} - features.keys())
    unused = [name for name in columns if name not in used]
    notes = [f"{origin}: {line}" for line in _lines(plan.told(dataset), carried, unused)]
    return bad.taken_from(standard.with_format(None)), plan.format, notes


def _lines(note: str | None, carried: Sequence[str], unused: Sequence[str]) -> Iterator[str]:
    """What a person is told of a conversion, of columns that pass and of those that are not used."""
    if note:
        yield note
    if own := [name for name, called in OWN.items() if called in carried]:
        yield f"its own {listed(own)} passed as {listed(OWN[name] for name in own)}"
    if unused:
        yield f"not used: {listed(unused)}"


def _carried(columns: list[str], purpose: Purpose, features: Mapping[str, Any]) -> list[str]:
    """The columns that pass as they are."""
    if purpose.dropped is None:
        return []
    return [name for name in columns if name not in purpose.dropped and name not in features]


def _features(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """The columns of the standard form: text where it is text in the data set, else JSON."""
    is_text = plan.is_text(dataset)
    features: dict[str, Any] = {
        name: Value("string") if is_text and name not in ALWAYS_JSON else Json()
        for name in FIELDS[plan.format]
    }
    if TOOLS in plan.optional and not is_text:
        features[TOOLS] = Json()
    return features | {
        "dataset": Value("string"),
        "source": Value("string"),
        "row": Value("int64"),
        BROKEN: Value("string"),
    }


def _fingerprint(dataset: Dataset, plan: Plan, features: dict[str, Any], origin: str) -> str:
    """What the result depends on, this code included, so that a cached one is never stale."""
    what = (dataset._fingerprint, plan.needed, plan.optional, features, origin, code_digest())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _convert(
    table: pa.Table,
    plans: list[Plan],
    kinds: dict[str, Any],
    carried: list[str],
    origin: str,
    bad: BadRows,
) -> pa.Table:
    """Some rows in the standard form; what is wrong with one stands in `BROKEN`, or is raised."""
    read = dict.fromkeys(name for each in plans for name in (*each.needed, *each.optional))
    batch = exact_columns(table.select([*read, *PLACE]))
    found: dict[str, list[Any]] = {name: [] for name in kinds if name not in carried}
    unreadable = _unreadable(table, {name: kinds[name] for name in carried})
    for index in range(len(table)):
        row = {name: values[index] for name, values in batch.items()}
        place, broken, standard = f"{row['source']}, row {row['row']}", unreadable.get(index), {}
        try:
            if broken is not None:
                raise broken
            standard = _standard(row, plans, kinds)
        except BrokenRule as error:
            if bad.stops_at_first:
                bad.add(row["source"], row["row"], f"{place}, {error}")
            standard = {BROKEN: str(error)}
        standard |= {"dataset": origin, "source": row["source"], "row": row["row"]}
        for name, values in found.items():
            values.append(standard.get(name))
    columns = {
        name: json_array(values)
        if isinstance(kinds[name], Json)
        else pa.array(values, kinds[name].pa_type)
        for name, values in found.items()
    }
    return pa.table(columns | {name: table.column(name) for name in carried})


def _standard(
    row: Mapping[str, Any], plans: Sequence[Plan], kinds: Mapping[str, Any]
) -> dict[str, Any]:
    """One row in the standard form.

    Raises:
        BrokenRule: if it breaks a rule.
    """
    standard = _read(row, plans)
    if TOOLS in kinds and TOOLS in plans[0].optional:
        standard[TOOLS] = tools_of(row[TOOLS], TOOLS)
    for name in FIELDS[plans[0].format]:
        _check_kind(name, standard[name], kinds[name])
    return standard


def _unreadable(table: pa.Table, kinds: Mapping[str, Any]) -> dict[int, BrokenRule]:
    """What `datasets` cannot read again of columns of JSON: its parser refuses large numbers."""
    found: dict[int, BrokenRule] = {}
    for name, kind in kinds.items():
        texts = table.column(name).to_pylist() if isinstance(kind, Json) else ()
        for index, text in enumerate(texts):
            if text is not None and LONG_NUMBER.search(text):
                try:
                    kind.decode_example(text)
                except ValueError as error:
                    what = f"a number that datasets cannot read ({error}); write it as text"
                    found[index] = BrokenRule(name, what)
    return found


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """Check that a row has text where the data set has text, and messages where it has messages."""
    if isinstance(kind, Json) and isinstance(value, str):
        raise BrokenRule(name, "text, but other rows have a list of messages")
    if not isinstance(kind, Json) and not isinstance(value, str):
        raise BrokenRule(name, "read as a list of messages, but other rows are text")


def _read(row: Mapping[str, Any], plans: Sequence[Plan]) -> dict[str, Any]:
    plan = plans[0]
    lacking = [name for name in plan.needed if row[name] is None]
    if lacking:
        for other in plans[1:]:
            if all(row[name] is not None for name in other.needed):
                raise BrokenRule(
                    lacking[0],
                    f"null, but there is {' and '.join(other.needed)}; the data set is read as "
                    f"{' and '.join(plan.needed)}: keep one format per data set",
                )
        raise BrokenRule(lacking[0], "null or absent")
    return plan.reading(row, plan)
