"""What a chat template writes: prompts, finished turns, and where a turn ends.

Nothing here knows a template by name. Every fact is had by rendering: the same conversation with a
marker in place of the assistant's words shows where they sit, what closes them and what comes next.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.template_errors import template_error
from toolkit.errors import DataError

Message = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# Two texts that share neither first nor last character, and that no template trims, splits or tests.
MARKERS = ("Qwvx1 zebra 7J", "Kfjq2 otter 9M")
USER_TEXT = "Vhgk3 heron 5L"
# What looks like a control token, for tokenizers that do not know the template's as tokens.
CONTROL_TEXT = r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]"


@dataclass(frozen=True)
class Ending:
    """How a template closes an assistant turn.

    Args:
        stop: the text of the stop token; the turn's last trained text.
        trailer: what the finished turn has after it, such as ChatML's newline; never trained.
        borrowed: True where the turn has no end of its own and the next message's header stops it.
    """

    stop: str
    trailer: str
    borrowed: bool = False


class Template:
    """One tokenizer's chat template, as `apply_chat_template` renders it at inference."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.endings: dict[tuple[Any, ...], Ending] = {}
        self.has_shown_tools = False

    def render(
        self, conversations: Sequence[list[Message]], tools: Any, *, prompt: bool = False
    ) -> list[str]:
        """The text of each conversation, with the generation prompt or without.

        Raises:
            DataError: with the template's own words, if it refuses one of them.
        """
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(conversations), tools=tools, add_generation_prompt=prompt, tokenize=False
            )
        except Exception as error:  # a template may raise anything
            raise template_error(self.tokenizer, error, prompt=prompt) from error
        return [str(text) for text in rendered]

    def normalise(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> list[Message]:
        """The conversation in the form that this template can read.

        Content becomes blocks where strings are dropped and strings where blocks are; the arguments
        of tool calls are parsed or dumped where the template needs the other form.
        """
        read = [self._readable(message) for message in messages]
        if not any(m.get("tool_calls") for m in read):
            return read
        refusal: DataError | None = None
        fallback: list[Message] | None = None
        for change in _ARGUMENT_FORMS:
            candidate = [change(message) for message in read]
            try:
                (text,) = self.render([candidate], tools)
            except DataError as error:
                refusal = refusal or error
                continue
            if not any(quoted in text for quoted in _quoted_arguments(candidate)):
                return candidate
            fallback = fallback or candidate
        if fallback is not None:
            return fallback
        raise refusal or DataError("the chat template cannot render the tool calls")

    @cached_property
    def reads_strings(self) -> bool:
        """Whether a string as content reaches the text."""
        return self._shows(lambda text: text)

    @cached_property
    def reads_blocks(self) -> bool:
        """Whether content blocks reach the text as a string would, not as Python or JSON."""
        shown = self._shows(as_blocks)
        if not (shown and self.reads_strings):
            return shown
        plain, blocks = (self.render([_probe(form)], None)[0] for form in (str, as_blocks))
        return plain == blocks

    @cached_property
    def stops(self) -> frozenset[str]:
        """Every text known to end a turn: a plain answer's, a tool call's, the tokenizer's own."""
        context, answer = self.normalise(_probe(str), None)
        call = {"type": "function", "id": "c0", "function": {"name": "f", "arguments": {"it": ""}}}
        found = {self.eos} - {""}
        for message, following in (answer, "user"), ({**answer, "tool_calls": [call]}, "tool"):
            try:
                found.add(self.ending([context], message, following, None).stop)
            except DataError:
                continue  # this template has no such turns
        return frozenset(found)

    def shows_tools(self, conversation: list[Message], tools: Any, whole: str) -> bool:
        """Whether the tools are in `whole`, the rendered conversation; once seen, always."""
        if not self.has_shown_tools:
            try:
                self.has_shown_tools = self.render([conversation], None) != [whole]
            except DataError:  # it needs the tools, so it reads them
                self.has_shown_tools = True
        return self.has_shown_tools

    def _shows(self, form: Callable[[str], Any]) -> bool:
        try:
            (text,) = self.render([_probe(form)], None)
        except DataError:
            return False
        return USER_TEXT in text and MARKERS[0] in text

    def _readable(self, message: Mapping[str, Any]) -> Message:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"a message is a mapping with a `role`, not {str(message)[:80]!r}")
        content = message.get("content")
        if isinstance(content, str) and not self.reads_strings and self.reads_blocks:
            return {**message, "content": as_blocks(content)}
        if isinstance(content, list) and not self.reads_blocks and self.reads_strings:
            if all(isinstance(b, Mapping) and b.get("type") == "text" for b in content):
                return {**message, "content": "".join(b.get("text") or "" for b in content)}
            raise DataError("the chat template cannot render content blocks that are not text")
        return dict(message)

    def ending(
        self,
        context: list[Message],
        message: Message,
        following: str,
        tools: Any,
        *,
        fresh: bool = False,
    ) -> Ending:
        """How a turn of this shape ends, by rendering it with marked words.

        Args:
            context: the messages before the turn.
            message: the assistant's message.
            following: the role of the message after it, or of the one that would come.
            tools: as given to the template.
            fresh: probe with this very context, even if the shape is known.
        """
        shape = (*_shape(message), following, tools is None)
        if fresh or shape not in self.endings:
            self.endings[shape] = self._probe_ending(context, message, following, tools)
        return self.endings[shape]

    def _probe_ending(
        self, context: list[Message], message: Message, following: str, tools: Any
    ) -> Ending:
        marked = marked_message(message, MARKERS[0])
        (finished,) = self.render([[*context, marked]], tools)
        at = finished.rfind(MARKERS[0])
        if at < 0:
            raise DataError(
                "the chat template renders neither what the assistant says nor its tool calls: set"
                " `chat_template_path` to a template that does"
            )
        tail = finished[at + len(MARKERS[0]) :]
        closing = self._call_closing([*context, marked], tail, tools)
        tail = tail.removeprefix(closing)
        history = self._after_marker([*context, marked], following, tools)
        history = None if history is None else history.removeprefix(closing)
        common = self._common(tail, history)
        closed = common if common.strip() else tail
        if not closed.strip():
            return self._borrowed(tail, history)
        stop = self._last_control(closed)
        end = tail.index(stop) + len(stop) if stop == self.eos else closed.rindex(stop) + len(stop)
        return Ending(stop, tail[end:])

    def _after_marker(self, conversation: list[Message], following: str, tools: Any) -> str | None:
        """What follows the marked words once another message does; None if none may."""
        message = conversation[-1]
        following_message: Message = {"role": following, "content": USER_TEXT}
        if isinstance(message.get("content"), list) or not self.reads_strings:
            following_message["content"] = as_blocks(USER_TEXT)
        if following == "tool" and message.get("tool_calls"):
            call = message["tool_calls"][-1]
            following_message["tool_call_id"] = call.get("id")
            following_message["name"] = call.get("function", call).get("name")
        try:
            (text,) = self.render([[*conversation, following_message]], tools)
        except DataError:
            return None
        at = text.rfind(MARKERS[0])
        return None if at < 0 else text[at + len(MARKERS[0]) :]

    def _call_closing(self, conversation: list[Message], tail: str, tools: Any) -> str:
        """The part of `tail` that closes a tool call and not the turn: another call may follow it."""
        *context, message = conversation
        calls = message.get("tool_calls")
        if not calls:
            return ""
        second = _with_arguments(calls[-1], lambda _: {"it": MARKERS[1]})
        both = {**message, "tool_calls": [*calls, second]}
        try:
            (text,) = self.render([[*context, both]], tools)
        except DataError:
            return ""
        between = text[text.rfind(MARKERS[0]) + len(MARKERS[0]) :]
        return self._common(tail, between) if MARKERS[1] in between else ""

    def _borrowed(self, tail: str, history: str | None) -> Ending:
        """The next message's header as stop, for turns without an end of their own."""
        if history is not None and history.startswith(tail):
            pieces = self.pieces(history[len(tail) :])
            if pieces and self._is_control(pieces[0]):
                return Ending(pieces[0], "", borrowed=True)
        raise DataError(
            "the chat template never ends an assistant turn: no stop token can be trained;"
            " add the tokenizer's eos_token to the template after the assistant's content"
        )

    def common_length(self, text: str, *others: str) -> int:
        """How many characters `text` shares with the start of all others, in whole control tokens."""
        columns = zip(text, *others, strict=False)
        length = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, columns))
        for match in self._control.finditer(text, max(0, length - 80)):
            if match.start() < length < match.end():
                return match.start()
        return length

    def _common(self, tail: str, history: str | None) -> str:
        """What `tail` and `history` share, in whole control tokens."""
        if history is None:
            return tail
        shared = ""
        for ours, theirs in zip(self.pieces(tail), self.pieces(history), strict=False):
            if ours != theirs:
                break
            shared += ours
        return shared

    def _last_control(self, text: str) -> str:
        """The control token that ends generation; the whole closing text if it has none."""
        pieces = self.pieces(text)
        if self.eos in pieces:
            return self.eos
        controls = [piece for piece in pieces if self._is_control(piece)]
        return controls[-1] if controls else text.strip()

    @cached_property
    def eos(self) -> str:
        """The tokenizer's end-of-sequence text, empty if it has none."""
        return str(self.tokenizer.eos_token or "")

    @cached_property
    def _control(self) -> re.Pattern[str]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        words = sorted({word for word in added if word.strip()}, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, words), CONTROL_TEXT]))

    def _is_control(self, piece: str) -> bool:
        return self._control.fullmatch(piece) is not None

    def pieces(self, text: str) -> list[str]:
        """`text` as control tokens, runs of whitespace and runs of everything else."""
        pieces, at = [], 0
        for match in self._control.finditer(text):
            pieces += [*re.findall(r"\s+|\S+", text[at : match.start()]), match[0]]
            at = match.end()
        return pieces + re.findall(r"\s+|\S+", text[at:])


def as_blocks(text: str) -> list[dict[str, str]]:
    """The content `text` as one content block."""
    return [{"type": "text", "text": text}]


def text_of(message: Mapping[str, Any]) -> str:
    """The message's text, whether content is a string or blocks."""
    return "".join(block_texts(message))


def block_texts(message: Mapping[str, Any]) -> list[str]:
    """The message's text block by block, empty for one without text; a string is one block."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        return [(b.get("text") or "") if isinstance(b, Mapping) else "" for b in content]
    return []


def marked_message(message: Message, marker: str) -> Message:
    """The message with every word of the assistant replaced by `marker`."""
    marked = dict(message)
    calls = message.get("tool_calls")
    if text_of(message).strip() or not calls:
        blocks = isinstance(message.get("content"), list)
        marked["content"] = as_blocks(marker) if blocks else marker
    for field in REASONING_FIELDS:
        if message.get(field):
            marked[field] = marker
    if calls:
        marked["tool_calls"] = [_with_arguments(call, lambda _: {"it": marker}) for call in calls]
    return marked


def _shape(message: Message) -> tuple[Any, ...]:
    reasons = any(message.get(field) for field in REASONING_FIELDS)
    return bool(message.get("tool_calls")), bool(text_of(message).strip()), reasons


def _probe(form: Callable[[str], Any]) -> list[Message]:
    return [
        {"role": "user", "content": form(USER_TEXT)},
        {"role": "assistant", "content": form(MARKERS[0])},
    ]


def _with_arguments(call: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of a tool call with its arguments changed; a string stays a string of JSON."""
    function = call.get("function", call)
    before = function.get("arguments")
    after = change(before)
    if isinstance(before, str) and isinstance(after, Mapping) and change is not _parsed:
        after = json.dumps(after)
    changed = {**function, "arguments": after}
    return {**call, "function": changed} if "function" in call else changed


def _parsed(arguments: Any) -> Any:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return value if isinstance(value, Mapping) else arguments


def _dumped(arguments: Any) -> Any:
    return (
        json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, Mapping) else arguments
    )


def _argument_form(change: Callable[[Any], Any] | None, *, content: bool) -> Callable[..., Message]:
    def apply(message: Message) -> Message:
        calls = message.get("tool_calls")
        if not calls:
            return message
        changed = dict(message)
        if change is not None:
            changed["tool_calls"] = [_with_arguments(call, change) for call in calls]
        if content and changed.get("content") is None:
            changed["content"] = ""
        return changed

    return apply


# As given first; then as the template may need it.
_ARGUMENT_FORMS = [
    _argument_form(change, content=content)
    for content in (False, True)
    for change in (None, _parsed, _dumped)
]


def _quoted_arguments(messages: list[Message]) -> Iterator[str]:
    """How arguments look that were a string of JSON and were then quoted as a JSON string."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            arguments = call.get("function", call).get("arguments")
            if isinstance(_parsed(arguments), Mapping) and isinstance(arguments, str):
                yield json.dumps(arguments)
                yield json.dumps(arguments, ensure_ascii=False)
