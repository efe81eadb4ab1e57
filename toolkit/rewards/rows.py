"""What TRL passes to a reward, row by row: texts of completions, columns, lengths."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.errors import DataError

Completion = str | Sequence[Mapping[str, Any]]
"""A text, or the messages that the policy wrote: role and content."""

PASSED_BY_TRL = {"completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
"""Keywords of TRL 1.16's GRPOTrainer that are no columns of the data."""


def texts(completions: Sequence[Completion]) -> list[str]:
    """The completions' words: of messages, the content of the assistant's last one."""
    return [_text(completion) for completion in completions]


def _text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = said[-1].get("content") if said else None
    if isinstance(content, Sequence) and not isinstance(content, str):
        return "".join(str(part.get("text") or "") for part in content)
    return content or ""  # a message that only calls tools has no content


def lengths(completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[int]:
    """How long each completion is: see `pieces`."""
    return [len(each) for each in pieces(completions, columns)]


def pieces(
    completions: Sequence[Completion], columns: Mapping[str, Any]
) -> Sequence[Sequence[int] | Sequence[str]]:
    """The tokens of each completion; where nobody passes `completion_ids`, its words."""
    ids = columns.get("completion_ids")
    return ids if ids is not None else [text.split() for text in texts(completions)]


def column(name: str, columns: Mapping[str, Any], reward: str) -> Sequence[Any]:
    """The values of a column of the data.

    Args:
        name: the column.
        columns: the keywords that a reward was called with.
        reward: the reward's name, for the message.

    Raises:
        DataError: if the rows have no such column.
    """
    if name in columns:
        return columns[name]
    found = ", ".join(sorted(columns.keys() - PASSED_BY_TRL)[:20]) or "none but the prompt"
    raise DataError(
        f"reward {reward}: there is no column {name!r}; found {found}: rename the right one, or "
        f"name it: {{name: {reward}, column: …}}"
    )


def from_json(value: Any) -> Any:
    """A list or an object that a file or a table holds as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
