"""What a row must be like: the rules for messages, texts and tools, each with its own words."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.data.columns import kind_of, listed

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


def messages_of(
    value: Any, column: str, *, earlier: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """A conversation with `role` and `content`; ShareGPT's `from` and `value` are translated.

    Args:
        value: a list of messages, or JSON text of one.
        column: its column.
        earlier: the checked messages that come before it in the row.

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
        kept = {key: item for key, item in message.items() if item is not None}
        if "role" not in kept and "from" in kept:
            kept = _from_sharegpt(kept, place)
        found.append(_checked(kept, place))
        if [m["role"] for m in [*earlier[-1:], *found][-2:]] == ["user", "user"]:
            what = "two user turns in a row; make them one, or put the assistant's between"
            raise BrokenRule(place, what)
        if found[-1]["role"] in {"tool", "ipython"}:
            _check_called([*earlier, *found], place)
    return found


def check_opening(messages: list[dict[str, Any]], column: str) -> None:
    """Check that somebody speaks before the assistant does.

    Raises:
        BrokenRule: if the first turn is the assistant's.
    """
    if messages[0]["role"] == "assistant":
        raise BrokenRule(
            f"{column}[0]",
            "the assistant's turn comes first, and at inference a prompt precedes it: put a system "
            "or user message before it",
        )


def check_answers(messages: list[dict[str, Any]], column: str) -> None:
    """Check that the assistant says something.

    Raises:
        BrokenRule: if it has no turn, or every turn of it is empty.
    """
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        raise BrokenRule(column, "no assistant turn, so nothing to train; found no role assistant")
    if not any(says_something(turn) for turn in turns):
        raise BrokenRule(column, "every assistant turn is empty, so nothing to train")


def tools_of(value: Any, column: str) -> list[Any] | None:
    """The tools that a row offers, as a list; JSON text is read.

    Raises:
        BrokenRule: if it is neither.
    """
    if value is None or value == "":
        return None
    value = parsed(value, column)
    if not isinstance(value, list):
        raise BrokenRule(column, f"expected a list of tools, found {kind_of(value)}")
    for index, tool in enumerate(value):
        if not isinstance(tool, Mapping):
            raise BrokenRule(f"{column}[{index}]", f"expected an object, found {kind_of(tool)}")
    return value or None


def parsed(value: Any, column: str) -> Any:
    """The value; if it is text that opens a JSON list, what the text says."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BrokenRule(column, "half of a surrogate pair, which is no character") from error
    except (ValueError, RecursionError) as error:
        raise BrokenRule(column, f"the text is no JSON list: {error}") from error
    return found


def _checked(message: dict[str, Any], place: str) -> dict[str, Any]:
    role = message.get("role")
    if role is None:
        raise BrokenRule(place, f"no role (keys: {listed(message)})")
    if role not in ROLES:
        raise BrokenRule(f"{place}.role", f"unknown role {role!r}{_nearest(role)}")
    content, calls = message.get("content"), message.get("tool_calls")
    if message.get("function_call"):
        raise BrokenRule(
            f"{place}.function_call",
            "the old form of a tool call, which chat templates drop; write it as tool_calls",
        )
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(c, Mapping) for c in calls)
    ):
        raise BrokenRule(f"{place}.tool_calls", "expected a list of objects")
    if content is None:
        if role != "assistant" or not calls:
            raise BrokenRule(f"{place}.content", "null or absent, and there is no tool call")
        return message | {"content": ""}
    if isinstance(content, list):
        for index, block in enumerate(content):
            _check_block(block, f"{place}.content[{index}]")
        return message
    text_of(content, f"{place}.content", empty=True)
    return message


def _check_block(block: Any, place: str) -> None:
    """A block of content is text: images and sounds need another kind of model and trainer."""
    if not isinstance(block, Mapping) or block.get("type") != "text":
        found = repr(block.get("type")) if isinstance(block, Mapping) else kind_of(block)
        raise BrokenRule(place, f'expected {{"type": "text", "text": …}}, found {found}')
    text_of(block.get("text"), f"{place}.text", empty=True)


def _nearest(role: Any) -> str:
    known = (
        {name: name for name in ROLES} | SHAREGPT_ROLES | {"ai": "assistant", "function": "tool"}
    )
    close = difflib.get_close_matches(str(role).lower(), list(known), n=1)
    allowed = ", ".join(ROLES)
    return f"; did you mean {known[close[0]]!r}?" if close else f"; expected one of {allowed}"


def _check_called(messages: list[dict[str, Any]], place: str) -> None:
    """A tool's result follows an assistant turn, which called it: by `tool_calls` or in its words."""
    callers = (m["role"] for m in reversed(messages) if m["role"] not in {"tool", "ipython"})
    if next(callers, None) != "assistant":
        raise BrokenRule(place, "a tool's result without an assistant turn that called the tool")


def says_something(turn: Mapping[str, Any]) -> bool:
    """Whether a checked turn of the assistant's has words or calls a tool."""
    content = turn["content"]
    texts = [content] if isinstance(content, str) else [block["text"] for block in content]
    return bool(turn.get("tool_calls")) or any(text.strip() for text in texts)


def _from_sharegpt(message: dict[str, Any], place: str) -> dict[str, Any]:
    """One message of `from` and `value` as `role` and `content`; other keys are not known to it."""
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise BrokenRule(f"{place}.from", f"unknown role {speaker!r}{_nearest(speaker)}")
    value = message.get("value")
    if speaker != "function_call":
        return {"role": SHAREGPT_ROLES[speaker], "content": value}
    try:
        called = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise BrokenRule(f"{place}.value", f"the tool call is not JSON: {error.msg}") from error
    functions = []
    for call in called if isinstance(called, list) else [called]:
        if not isinstance(call, Mapping) or "name" not in call:
            raise BrokenRule(f"{place}.value", "expected a tool call with name and arguments")
        functions.append({"type": "function", "function": dict(call)})
    return {"role": "assistant", "content": "", "tool_calls": functions}
