"""What a row must be like: the rules for messages, texts and tools, each with its own words."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from toolkit.data.files import kind_of

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "assistant": "assistant", "model": "assistant", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip


class BrokenRule(ValueError):
    """A row that breaks a rule; the caller knows which file and row it is.

    Args:
        column: where in the row.
        rule: what was expected and what was found.
    """

    def __init__(self, column: str, rule: str):
        super().__init__(f"column {column!r}: {rule}")


def text_of(value: Any, column: str, *, empty: bool = False) -> str:
    """The value, if it is text that can be encoded; empty or blank text only where allowed.

    Raises:
        BrokenRule: if it is not.
    """
    if not isinstance(value, str):
        raise BrokenRule(column, f"expected text, found {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BrokenRule(column, "half of a surrogate pair, which is no character") from error
    if not empty and not value.strip():
        raise BrokenRule(column, "the text is empty")
    return value


def messages_of(value: Any, column: str, *, merged: bool) -> list[dict[str, Any]]:
    """A conversation with `role` and `content`; ShareGPT's `from` and `value` are translated.

    Args:
        value: a list of messages, or JSON text of one.
        column: its column.
        merged: whether Arrow has merged the objects, so that a null may stand for an absent key.

    Raises:
        BrokenRule: for the first message that breaks a rule.
    """
    value = parsed(value, column)
    if not isinstance(value, list):
        raise BrokenRule(column, f"expected a list of messages, found {kind_of(value)}")
    if not value:
        raise BrokenRule(column, "the list of messages is empty")
    found: list[dict[str, Any]] = []
    for index, message in enumerate(value):
        place = f"{column}[{index}]"
        if not isinstance(message, Mapping):
            raise BrokenRule(
                place, f"expected an object with role and content, found {kind_of(message)}"
            )
        kept = (
            without_nulls(message)
            if merged
            else {k: v for k, v in message.items() if v is not None}
        )
        if "role" not in kept and "from" in kept:
            kept = _from_sharegpt(kept, place)
        found.append(_checked(kept, place))
        if found[-1]["role"] in {"tool", "ipython"}:
            _check_called(found, place)
    return found


def conversation_of(value: Any, column: str, *, merged: bool) -> list[dict[str, Any]]:
    """Messages with something to train: a turn of the assistant's that is not empty.

    Raises:
        BrokenRule: as `messages_of`, and if there is nothing to train.
    """
    messages = messages_of(value, column, merged=merged)
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise BrokenRule(column, f"no assistant turn, so nothing to train (roles: {roles})")
    if not any(_says_something(turn) for turn in turns):
        raise BrokenRule(column, "every assistant turn is empty, so nothing to train")
    return messages


def tools_of(value: Any, column: str, *, merged: bool) -> list[Any] | None:
    """The tools that a row offers, as a list; JSON text is read.

    Raises:
        BrokenRule: if it is neither.
    """
    if value is None or value == "":
        return None
    value = parsed(value, column)
    if not isinstance(value, list):
        raise BrokenRule(column, f"expected a list of tools, found {kind_of(value)}")
    return (without_nulls(value) if merged else value) or None


def parsed(value: Any, column: str) -> Any:
    """The value; if it is text that opens a JSON list, what the text says."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise BrokenRule(column, f"the text is no JSON list: {error.msg}") from error
    return value


def without_nulls(value: Any) -> Any:
    """The value without keys that are null, at any depth: Arrow writes them for absent ones."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _checked(message: dict[str, Any], place: str) -> dict[str, Any]:
    role = message.get("role")
    if role is None:
        raise BrokenRule(place, f"no role (keys: {', '.join(message) or 'none'})")
    if role not in ROLES:
        raise BrokenRule(f"{place}.role", f"unknown role {role!r}{_nearest(role)}")
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(c, Mapping) for c in calls)
    ):
        raise BrokenRule(f"{place}.tool_calls", "expected a list of objects")
    if content is None:
        if role != "assistant" or not calls:
            raise BrokenRule(f"{place}.content", "null or absent, and there is no tool call")
        return message | {"content": ""}
    if isinstance(content, list):
        if not all(isinstance(block, Mapping) and "type" in block for block in content):
            raise BrokenRule(f"{place}.content", "expected text, or blocks that each have a type")
        return message
    text_of(content, f"{place}.content", empty=True)
    return message


def _nearest(role: Any) -> str:
    known = (
        {name: name for name in ROLES} | SHAREGPT_ROLES | {"ai": "assistant", "function": "tool"}
    )
    close = difflib.get_close_matches(str(role).lower(), list(known), n=1)
    allowed = ", ".join(ROLES)
    return f"; did you mean {known[close[0]]!r}?" if close else f"; expected one of {allowed}"


def _check_called(messages: list[dict[str, Any]], place: str) -> None:
    """A tool's result follows an assistant turn, which called it: by `tool_calls` or in its words."""
    before = [m["role"] for m in messages if m["role"] not in {"tool", "ipython"}]
    after_turn = before and before[-1] == "assistant"
    if not after_turn:
        raise BrokenRule(place, "a tool's result without an assistant turn that called the tool")


def _says_something(turn: Mapping[str, Any]) -> bool:
    content = turn["content"]
    return bool(
        turn.get("tool_calls") or (content.strip() if isinstance(content, str) else content)
    )


def _from_sharegpt(message: dict[str, Any], place: str) -> dict[str, Any]:
    """One message of `from` and `value` as `role` and `content`; other keys are not known to it."""
    speaker = message["from"]
    if speaker not in SHAREGPT_ROLES:
        raise BrokenRule(f"{place}.from", f"unknown role {speaker!r}{_nearest(speaker)}")
    value = message.get("value")
    if speaker != "function_call":
        return {"role": SHAREGPT_ROLES[speaker], "content": value}
    try:
        called = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise BrokenRule(f"{place}.value", f"the tool call is not JSON: {error.msg}") from error
    calls = called if isinstance(called, list) else [called]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise BrokenRule(f"{place}.value", "expected a tool call with name and arguments")
    functions = [{"type": "function", "function": dict(call)} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions}
