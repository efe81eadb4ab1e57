"""What a chat completion request asks for; what is unknown or unsupported is refused, not ignored."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.inference.serving.refusal import Refusal

ROLES = ("system", "user", "assistant")
STOPS, STOP_LENGTH = 4, 256
SEEDS = 2**63
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "logit_bias": ({},), "logprobs": (False,), "parallel_tool_calls": (True, False),
    "presence_penalty": (0,), "response_format": ({"type": "text"},), "service_tier": ("auto", "default"),
    "store": (False,), "tool_choice": ("none", "auto"), "tools": ([],), "modalities": (["text"],),
}  # fmt: skip
"""Parameters that are not supported, with the values that ask for nothing."""


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        model: by its name.
        messages: role and content of each.
        n: how many answers.
        temperature: 0 takes the likeliest token.
        top_p: the share of probability that is sampled from.
        max_tokens: of an answer; None where the client leaves it to the server.
        stop: what ends an answer.
        seed: None where the client has none.
        stream: whether it is sent as it grows.
        include_usage: whether a stream ends with the counts.
    """

    model: str
    messages: list[dict[str, Any]]
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False


def read(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body.

    Raises:
        Refusal: if there is none.
    """
    try:
        found = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is no JSON: {said}"[:200]) from error
    if not isinstance(found, dict):
        raise Refusal(400, f"expected a JSON object, found {kind(found)}")
    return found


def no_number(word: str) -> float:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{word} is no number")


def asked_for(body: Mapping[str, Any]) -> Asked:
    """A request from its JSON; null is as if it was not there.

    Raises:
        Refusal: naming the parameter.
    """
    given = {key: value for key, value in body.items() if value is not None}
    for key, value in given.items():
        check_known(key, value)
    for key in ("model", "messages"):
        if key not in given:
            raise Refusal(400, f"{key} is missing", param=key)
    longest = [key for key in ("max_completion_tokens", "max_tokens") if key in given]
    if len(longest) > 1:
        raise Refusal(400, "give max_completion_tokens or max_tokens, not both", param=longest[1])
    return Asked(
        model=text(given["model"], "model"),
        messages=messages_of(given["messages"]),
        n=whole(given.get("n", 1), "n", 1),
        temperature=number(given.get("temperature", 1.0), "temperature", lambda x: x == 0 or 0.01 <= x <= 2, "0, or 0.01 to 2"),
        top_p=number(given.get("top_p", 1.0), "top_p", lambda x: 0 < x <= 1, "more than 0, up to 1"),
        max_tokens=whole(given[longest[0]], longest[0], 1) if longest else None,
        stop=stops(given.get("stop", [])),
        seed=seed_of(given.get("seed")),
        stream=truth(given.get("stream", False), "stream"),
        include_usage=usage_wanted(given),
    )  # fmt: skip


OWN = (
    "model", "messages", "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop",
    "seed", "stream", "stream_options", "user",
)  # fmt: skip
"""What is supported; `user` names who asks, and changes no answer."""


def check_known(key: str, value: Any) -> None:
    """Refuse a parameter that would have to be ignored."""
    if key in OWN:
        return
    if key not in NEUTRAL:
        raise Refusal(400, f"unknown parameter {shown(key)}; known: {', '.join(OWN)}", param=key)
    same = (
        value == none for none in NEUTRAL[key] if isinstance(value, bool) is isinstance(none, bool)
    )
    if not any(same):
        raise Refusal(400, f"{key} is not supported, found {shown(value)}", param=key)


def messages_of(value: Any) -> list[dict[str, Any]]:
    """The conversation, which ends with the user's turn."""
    if not isinstance(value, list) or not value:
        raise Refusal(
            400, f"messages: expected a list of them, found {kind(value)}", param="messages"
        )
    found = [message_of(each, f"messages[{at}]") for at, each in enumerate(value)]
    if found[-1]["role"] != "user":
        raise Refusal(400, "messages: the last one has to be the user's", param="messages")
    return found


def message_of(value: Any, where: str) -> dict[str, Any]:
    """One message; content in parts of text becomes one text."""
    if not isinstance(value, dict):
        raise Refusal(400, f"{where}: expected an object, found {kind(value)}", param=where)
    given = {key: each for key, each in value.items() if each is not None}
    if unknown := sorted(map(str, given.keys() - {"role", "content"})):
        raise Refusal(400, f"{where}: {shown(unknown[0])} is not supported", param=where)
    role = given.get("role")
    if role not in ROLES:
        expected = ", ".join(ROLES)
        raise Refusal(
            400, f"{where}.role: expected one of {expected}, found {shown(role)}", param=where
        )
    content = given.get("content")
    if isinstance(content, list) and content:
        content = "".join(part_of(part, where) for part in content)
    if content == "" and role == "assistant":  # a model may have said nothing
        return {"role": role, "content": content}
    return {"role": role, "content": text(content, f"{where}.content")}


def part_of(value: Any, where: str) -> str:
    """The text of a part of a message."""
    if not isinstance(value, dict) or set(value) != {"type", "text"} or value["type"] != "text":
        raise Refusal(400, f"{where}.content: only parts of type text are supported", param=where)
    return text(value["text"], f"{where}.content")


def text(value: Any, where: str) -> str:
    """A text that has letters, all of which can be written as UTF-8."""
    if not isinstance(value, str) or not value:
        raise Refusal(400, f"{where}: expected text, found {kind(value)}", param=where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refusal(
            400, f"{where}: half of a surrogate pair is no letter", param=where
        ) from error
    return value


def whole(value: Any, where: str, least: int) -> int:
    """A whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < SEEDS:
        raise Refusal(
            400, f"{where}: expected a whole number from {least}, found {shown(value)}", param=where
        )
    return value


def seed_of(value: Any) -> int | None:
    """A seed of 64 bits with a sign."""
    return None if value is None else whole(value, "seed", -SEEDS)


def number(value: Any, where: str, fits: Callable[[float], bool], expected: str) -> float:
    """A number in a range."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not fits(value):
        raise Refusal(
            400, f"{where}: expected a number of {expected}, found {shown(value)}", param=where
        )
    return float(value)


def truth(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Refusal(400, f"{where}: expected true or false, found {shown(value)}", param=where)
    return value


def stops(value: Any) -> tuple[str, ...]:
    """One stop string or a few."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > STOPS:
        raise Refusal(400, f"stop: expected text, or up to {STOPS} of them", param="stop")
    for each in found:
        if len(text(each, "stop")) > STOP_LENGTH:
            raise Refusal(400, f"stop: expected at most {STOP_LENGTH} letters", param="stop")
    return tuple(found)


def usage_wanted(given: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with the counts."""
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage"}:
        raise Refusal(
            400, "stream_options: only include_usage is supported", param="stream_options"
        )
    if options and not given.get("stream"):
        raise Refusal(400, "stream_options goes with stream: true only", param="stream_options")
    return truth(options.get("include_usage", False), "stream_options.include_usage")


def check_model(name: str, known: Collection[str]) -> None:
    """Refuse a model that is not served."""
    if name not in known:
        raise Refusal(
            404, f"there is no model {shown(name)}; known: {', '.join(known)}", param="model",
            code="model_not_found",
        )  # fmt: skip


def kind(value: Any) -> str:
    """What a value is, in a word of JSON."""
    names = {
        type(None): "null",
        bool: "true or false",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    if value in ("", [], {}):
        return f"an empty {names[type(value)].removeprefix('a ').removeprefix('an ')}"
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value in a message, short and in plain letters."""
    found = json.dumps(value, default=str)
    return found if len(found) <= 60 else f"{found[:57]}..."
