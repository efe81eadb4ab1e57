"""The three forms of a row that are trained: `messages`, `prompt`+`completion`, `text`.

Every row is looked at, not the first alone. Columns of other conventions (ShareGPT, Alpaca, question
and answer) are converted, with a note. Messages and tools are held as JSON columns, which read as
lists: Arrow's own structs would give every object the keys of all others, so that tools are called
with arguments nobody gave.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, Value

from toolkit.data.files import PLACE, exact_columns, json_array, kind_of, with_place
from toolkit.data.rules import BrokenRule, conversation_of, messages_of, text_of, tools_of
from toolkit.errors import DataError

CONVERSATIONS = ("messages", "conversations", "conversation")
ASKED = ("instruction", "question", "problem", "query")
ANSWERED = ("output", "response", "solution", "answer")
GIVEN = ("input", "context")
SYSTEM = ("system", "system_prompt")
TOOLS = "tools"


@dataclass(frozen=True)
class Plan:
    """Which columns are read, and how.

    Attributes:
        format: "messages", "prompt_completion" or "text".
        needed: the columns that no row may lack.
        optional: the columns that a row may lack.
        reading: makes a row of the standard form; takes the row and the columns that are merged.
        note: what is converted; empty if nothing is.
    """

    format: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    reading: Callable[[Mapping[str, Any], "Plan", frozenset[str]], dict[str, Any]]
    note: str = ""


def to_standard(
    dataset: Dataset, *, origin: str, text_field: str | None = None
) -> tuple[Dataset, str, list[str]]:
    """The rows in one of the three forms, each of them checked.

    Args:
        dataset: any rows; `source` and `row`, if there, say where each comes from.
        origin: what messages call rows without them.
        text_field: the column to train on as text, whatever else there is.

    Returns:
        The rows with the columns of their form (`messages`, `prompt` and `completion`, or `text`),
        `tools` where given, `source` and `row`; the form's name; and notes on what was converted
        and what is not used.

    Raises:
        DataError: for the first row that breaks a rule, with its file, row, column and rule.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(f"{origin}: expected a datasets.Dataset, found {type(dataset).__name__}")
    if not len(dataset):
        raise DataError(f"{origin}: there are no rows")
    if not set(PLACE) <= set(dataset.column_names):
        dataset = with_place(dataset, origin)
    columns = [name for name in dataset.column_names if name not in PLACE]
    plans = possible_plans(columns, text_field)
    if not plans:
        raise DataError(f"{origin}: {_what_is_missing(columns)}")
    plan, merged = plans[0], _merged(dataset)
    fields = {"messages": ("messages",), "text": ("text",)}.get(
        plan.format, ("prompt", "completion")
    )
    features: dict[str, Any] = {field: _field_type(dataset, plan, field) for field in fields}
    if TOOLS in columns and plan.format != "text":
        features[TOOLS] = Json()
    features |= {"source": Value("string"), "row": Value("int64")}
    standard = dataset.with_format("arrow").map(
        _convert,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        fn_kwargs={"plans": plans, "merged": merged, "kinds": features},
        new_fingerprint=_fingerprint(dataset, plan, features),
        desc="reading rows",
    )
    standard = standard.with_format(None)
    notes = [f"{origin}: {plan.note}"] if plan.note else []
    unused = [c for c in columns if c not in (*plan.needed, *plan.optional)]
    if unused:
        notes.append(f"{origin}: not used: {', '.join(unused)}")
    return standard, plan.format, notes


def possible_plans(columns: Sequence[str], text_field: str | None = None) -> list[Plan]:
    """Every way to read rows with these columns, the most telling first."""
    plans = []
    tools = (TOOLS,) if TOOLS in columns else ()
    if text_field in columns:
        return [Plan("text", (str(text_field),), (), _read_text)]
    for name in CONVERSATIONS:
        if name in columns:
            system = tuple(c for c in SYSTEM if c in columns) if name != "messages" else ()
            note = "" if name == "messages" else f"{name} read as messages"
            plans.append(Plan("messages", (name,), (*tools, *system[:1]), _read_messages, note))
    if "prompt" in columns and "completion" in columns:
        plans.append(Plan("prompt_completion", ("prompt", "completion"), tools, _read_completion))
    asked, answered, given, system = (
        next((name for name in names if name in columns), None)
        for names in (ASKED, ANSWERED, GIVEN, SYSTEM)
    )
    if asked and answered:
        history = "history" if "history" in columns else None
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


def _what_is_missing(columns: list[str]) -> str:
    if "chosen" in columns and "rejected" in columns:
        return "chosen and rejected are preferences: stage reward or dpo reads them, sft does not"
    if "input_ids" in columns:
        return "the rows are tokens already; give the messages or texts that they were made from"
    only = "prompt without completion; " if "prompt" in columns else ""
    return (
        f"{only}expected messages, prompt and completion, or text (or conversations, or instruction "
        f"and output, or question and answer); found the columns {', '.join(columns) or '(none)'}"
    )


def _merged(dataset: Dataset) -> frozenset[str]:
    """The columns that Arrow holds as structs, where a null may stand for an absent key."""
    plain = (Json, Value)
    return frozenset(n for n, kind in dataset.features.items() if not isinstance(kind, plain))


def _field_type(dataset: Dataset, plan: Plan, field: str) -> Any:
    """Text where it is text in the data set, else JSON."""
    if plan.format == "text":
        return Value("string")
    if plan.format == "prompt_completion":
        kind = dataset.features[field]
        return Value("string") if isinstance(kind, Value) else Json()
    return Json()


def _fingerprint(dataset: Dataset, plan: Plan, features: dict[str, Any]) -> str:
    """What the result depends on, this code included, so that a cached one is never stale."""
    what = (
        f"{dataset._fingerprint}{plan.format}{plan.needed}{plan.optional}{features}{code_digest()}"
    )
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def code_digest() -> str:
    """A digest of the source of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _convert(
    table: pa.Table, plans: list[Plan], merged: frozenset[str], kinds: dict[str, Any]
) -> pa.Table:
    plan, batch = plans[0], exact_columns(table)
    found: dict[str, list[Any]] = {name: [] for name in kinds}
    for index in range(len(batch["row"])):
        row = {name: values[index] for name, values in batch.items()}
        try:
            standard = _read(row, plan, plans, merged)
        except BrokenRule as error:
            raise DataError(f"{row['source']}, row {row['row']}, {error}") from error
        standard |= {"source": row["source"], "row": row["row"]}
        for name, values in found.items():
            values.append(standard.get(name))
    return pa.table(
        {
            name: json_array(values)
            if isinstance(kinds[name], Json)
            else pa.array(values, kinds[name].pa_type)
            for name, values in found.items()
        }
    )


def _read(
    row: Mapping[str, Any], plan: Plan, plans: list[Plan], merged: frozenset[str]
) -> dict[str, Any]:
    lacking = [name for name in plan.needed if row[name] is None]
    if lacking:
        for other in plans[1:]:
            if len(lacking) == len(plan.needed) and all(row[n] is not None for n in other.needed):
                raise BrokenRule(
                    lacking[0],
                    f"null, but there is {' and '.join(other.needed)}: the rows before are "
                    f"{' and '.join(plan.needed)}; keep one format per file",
                )
        raise BrokenRule(lacking[0], "null or absent")
    standard = plan.reading(row, plan, merged)
    if TOOLS in plan.optional:
        standard[TOOLS] = tools_of(row[TOOLS], TOOLS, merged=TOOLS in merged)
    return standard


def _read_messages(row: Mapping[str, Any], plan: Plan, merged: frozenset[str]) -> dict[str, Any]:
    name = plan.needed[0]
    messages = conversation_of(row[name], name, merged=name in merged)
    system = next((c for c in plan.optional if c in SYSTEM), None)
    if system and row[system] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": text_of(row[system], system)})
    return {"messages": messages}


def _read_completion(row: Mapping[str, Any], plan: Plan, merged: frozenset[str]) -> dict[str, Any]:
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
    return {
        "prompt": messages_of(prompt, "prompt", merged="prompt" in merged),
        "completion": conversation_of(completion, "completion", merged="completion" in merged),
    }


def _read_asked(row: Mapping[str, Any], plan: Plan, merged: frozenset[str]) -> dict[str, Any]:
    asked, answered = plan.needed
    given, system, history = (
        next((row[c] for c in plan.optional if c in names), None)
        for names in (GIVEN, SYSTEM, ("history",))
    )
    messages = []
    if system:
        messages.append({"role": "system", "content": text_of(system, "system")})
    for turn in history or ():
        if not isinstance(turn, list) or len(turn) != 2:
            raise BrokenRule("history", "expected pairs of what was asked and answered")
        messages.append({"role": "user", "content": text_of(turn[0], "history")})
        messages.append({"role": "assistant", "content": text_of(turn[1], "history")})
    words = text_of(row[asked], asked)
    if given:
        context = next(c for c in plan.optional if c in GIVEN)
        words = f"{words}\n\n{text_of(given, context, empty=True)}" if str(given).strip() else words
    messages.append({"role": "user", "content": words})
    messages.append({"role": "assistant", "content": text_of(row[answered], answered)})
    return {"messages": messages}


def _read_text(row: Mapping[str, Any], plan: Plan, merged: frozenset[str]) -> dict[str, Any]:
    return {"text": text_of(row[plan.needed[0]], plan.needed[0])}
