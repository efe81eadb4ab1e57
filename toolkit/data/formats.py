"""The three forms of a row that are trained: `messages`, `prompt`+`completion`, `text`.

Every row is looked at, not the first alone. Columns of other conventions (ShareGPT, Alpaca, question
and answer) are converted, with a note. Messages and tools are held as JSON columns, which read as
lists.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, Value

from toolkit.data.columns import PLACE, exact_columns, json_array, kind_of, listed, with_place
from toolkit.data.rules import BrokenRule, check_answers, messages_of, text_of, tools_of
from toolkit.errors import DataError

CONVERSATIONS = ("messages", "conversations", "conversation")
ASKED = ("instruction", "question", "problem", "query")
ANSWERED = ("output", "response", "solution", "answer")
GIVEN = ("input", "context")
SYSTEM = ("system", "system_prompt")
HISTORY = "history"
TOOLS = "tools"
FIELDS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The columns that carry each form."""


@dataclass(frozen=True)
class Plan:
    """Which columns are read, and how.

    Attributes:
        format: "messages", "prompt_completion" or "text".
        needed: the columns that no row may lack.
        optional: the columns that a row may lack.
        reading: makes a row of the standard form of a row.
        note: what is converted; empty if nothing is.
    """

    format: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    reading: Callable[[Mapping[str, Any], "Plan"], dict[str, Any]]
    note: str = ""

    def value(self, row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
        """The optional column that is one of `names`, and what the row has there."""
        column = next((name for name in self.optional if name in names), "")
        return column, row[column] if column else None


def to_standard(
    dataset: Dataset, *, origin: str, text_field: str | None = None
) -> tuple[Dataset, str, list[str]]:
    """The rows in one of the three forms, each of them checked.

    Args:
        dataset: any rows; `source` and `row`, if there, say where each comes from.
        origin: what the data set is called.
        text_field: the column to train on as text, unless there are messages or prompts.

    Returns:
        The rows with the columns of their form (see `FIELDS`), `tools` where given, `dataset`,
        `source` and `row`; the form's name; and notes on what was converted and what is not used.

    Raises:
        DataError: for the first row that breaks a rule, with its file, row, column and rule.
    """
    if not set(PLACE) <= set(dataset.column_names):
        dataset = with_place(dataset, origin)
    columns = [name for name in dataset.column_names if name not in PLACE]
    plans = possible_plans(columns, text_field)
    if not plans:
        raise DataError(f"{origin}: {_what_is_missing(columns, text_field)}")
    plan = plans[0]
    read = [name for name in columns if any(name in (*p.needed, *p.optional) for p in plans)]
    dataset = dataset.select_columns([*read, *PLACE])
    features = _features(dataset, plan)
    standard = dataset.with_format("arrow").map(
        _convert,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        fn_kwargs={"plans": plans, "kinds": features, "origin": origin},
        new_fingerprint=_fingerprint(dataset, plan, features, origin),
        desc="reading rows",
    )
    notes = [f"{origin}: {plan.note}"] if plan.note else []
    used = {*plan.needed, *(plan.optional if TOOLS in features else set(plan.optional) - {TOOLS})}
    if unused := [name for name in columns if name not in used]:
        notes.append(f"{origin}: not used: {listed(unused)}")
    return standard.with_format(None), plan.format, notes


def possible_plans(columns: Sequence[str], text_field: str | None = None) -> list[Plan]:
    """Every way to read rows with these columns, the most telling first."""
    plans = []
    tools = (TOOLS,) if TOOLS in columns else ()
    for name in CONVERSATIONS:
        if name in columns:
            system = tuple(c for c in SYSTEM if c in columns) if name != "messages" else ()
            note = "" if name == "messages" else f"{name} read as messages"
            plans.append(Plan("messages", (name,), (*tools, *system[:1]), _read_messages, note))
    if "prompt" in columns and "completion" in columns:
        plans.append(Plan("prompt_completion", ("prompt", "completion"), tools, _read_completion))
    if text_field is not None:  # TRL reads it where there are no messages and no prompts
        texts = [Plan("text", (text_field,), (), _read_text)] if text_field in columns else []
        return plans + texts
    asked, answered, given, system = (
        next((name for name in names if name in columns), None)
        for names in (ASKED, ANSWERED, GIVEN, SYSTEM)
    )
    if asked and answered:
        history = HISTORY if HISTORY in columns else None
        extra = tuple(name for name in (given, system, history) if name)
        user = " and ".join(name for name in (asked, given) if name)
        note = f"converted to messages: {user} → user, {answered} → assistant"
        note += "".join(
            f", {name} → {to}"
            for name, to in ((system, "system"), (history, "earlier turns"))
            if name
        )
        plans.append(Plan("messages", (asked, answered), (*extra, *tools), _read_asked, note))
    if "text" in columns:
        plans.append(Plan("text", ("text",), (), _read_text))
    return plans


def _what_is_missing(columns: list[str], text_field: str | None) -> str:
    if text_field is not None:
        return f"there is no column {text_field!r} (dataset_text_field); found {listed(columns)}"
    if "chosen" in columns and "rejected" in columns:
        return "chosen and rejected are preferences: stage reward or dpo reads them, sft does not"
    if {"role", "content"} <= set(columns):
        return "each row is one message; put the messages of a conversation into a list, messages"
    if "input_ids" in columns:
        return "the rows are tokens already; give the messages or texts that they were made from"
    only = "prompt without completion; " if "prompt" in columns else ""
    return (
        f"{only}expected messages, prompt and completion, or text (or conversations, or instruction "
        f"and output, or question and answer); found the columns {listed(columns)}"
    )


def _features(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """The columns of the standard form: text where it is text in the data set, else JSON."""
    features: dict[str, Any] = {}
    for name in FIELDS[plan.format]:
        is_text = plan.format == "text" or (
            plan.format == "prompt_completion" and isinstance(dataset.features[name], Value)
        )
        features[name] = Value("string") if is_text else Json()
    if TOOLS in plan.optional and any(isinstance(kind, Json) for kind in features.values()):
        features[TOOLS] = Json()
    return features | {
        "dataset": Value("string"),
        "source": Value("string"),
        "row": Value("int64"),
    }


def _fingerprint(dataset: Dataset, plan: Plan, features: dict[str, Any], origin: str) -> str:
    """What the result depends on, this code included, so that a cached one is never stale."""
    what = (dataset._fingerprint, plan.needed, plan.optional, features, origin, code_digest())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def code_digest() -> str:
    """A digest of the source of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _convert(
    table: pa.Table,
    plans: list[Plan],
    kinds: dict[str, Any],
    origin: str,
) -> pa.Table:
    plan, batch = plans[0], exact_columns(table)
    found: dict[str, list[Any]] = {name: [] for name in kinds}
    for index in range(len(table)):
        row = {name: values[index] for name, values in batch.items()}
        try:
            standard = _read(row, plans)
            if TOOLS in kinds:
                standard[TOOLS] = tools_of(row[TOOLS], TOOLS)
            for name in FIELDS[plan.format]:
                if isinstance(kinds[name], Json) and isinstance(standard[name], str):
                    raise BrokenRule(name, "text, but other rows have a list of messages")
        except BrokenRule as error:
            raise DataError(f"{row['source']}, row {row['row']}, {error}") from error
        standard |= {"dataset": origin, "source": row["source"], "row": row["row"]}
        for name, values in found.items():
            values.append(standard[name])
    return pa.table(
        {
            name: json_array(values)
            if isinstance(kinds[name], Json)
            else pa.array(values, kinds[name].pa_type)
            for name, values in found.items()
        }
    )


def _read(row: Mapping[str, Any], plans: Sequence[Plan]) -> dict[str, Any]:
    plan = plans[0]
    lacking = [name for name in plan.needed if row[name] is None]
    if len(lacking) == len(plan.needed):
        for other in plans[1:]:
            if all(row[name] is not None for name in other.needed):
                raise BrokenRule(
                    lacking[0],
                    f"null, but there is {' and '.join(other.needed)}; the data set is read as "
                    f"{' and '.join(plan.needed)}: keep one format per data set",
                )
    if lacking:
        raise BrokenRule(lacking[0], "null or absent")
    return plan.reading(row, plan)


def _read_messages(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    name = plan.needed[0]
    messages = messages_of(row[name], name)
    check_answers(messages, name)
    column, system = plan.value(row, SYSTEM)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": text_of(system, column)})
    return {"messages": messages}


def _read_completion(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise BrokenRule(
            "completion",
            f"{kind_of(completion)}, but prompt is {kind_of(prompt)}: both are text, or both lists",
        )
    if isinstance(prompt, str):
        return {
            "prompt": text_of(prompt, "prompt", empty=True),
            "completion": text_of(completion, "completion"),
        }
    before = messages_of(prompt, "prompt")
    after = messages_of(completion, "completion", earlier=before)
    check_answers(after, "completion")
    return {"prompt": before, "completion": after}


def _read_asked(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    asked, answered = plan.needed
    messages = []
    column, system = plan.value(row, SYSTEM)
    if system:
        messages.append({"role": "system", "content": text_of(system, column)})
    for turn in row.get(HISTORY) or ():
        if not isinstance(turn, list) or len(turn) != 2:
            raise BrokenRule(HISTORY, "expected pairs of what was asked and answered")
        messages.append({"role": "user", "content": text_of(turn[0], HISTORY)})
        messages.append({"role": "assistant", "content": text_of(turn[1], HISTORY)})
    words = text_of(row[asked], asked)
    column, given = plan.value(row, GIVEN)
    if given is not None and text_of(given, column, empty=True).strip():
        words = f"{words}\n\n{given}"
    messages.append({"role": "user", "content": words})
    messages.append({"role": "assistant", "content": text_of(row[answered], answered)})
    return {"messages": messages}


def _read_text(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    return {"text": text_of(row[plan.needed[0]], plan.needed[0])}
