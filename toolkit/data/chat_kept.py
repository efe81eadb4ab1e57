"""What a chat template leaves out of what a conversation says; templates drop words without a word.

Of the assistant's turn every word must be rendered, or the model is trained on less than the row
says. Whether it is there is read from the text; only where the text does not say, the template is
rendered once more with a marker in place of the words.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from toolkit.data.template_render import (
    MARKERS,
    REASONING_FIELDS,
    Message,
    Template,
    as_blocks,
    block_texts,
    text_of,
)
from toolkit.errors import DataError

# Some templates pass over other roles; to find their words in the text proves little, nor does it
# for short words, which may be part of a header. No template passes over the user.
COMMON_ROLES = frozenset({"system", "tool"})
TELLING = 16  # characters
Said = tuple[str, str, Message]  # what it is called, its words, the message with a marker for them


def check_kept(
    template: Template,
    conversation: list[Message],
    tools: Any,
    *,
    prompt: str,
    finished: str,
    body: str,
) -> None:
    """Refuses a turn of which the template drops reasoning, content or a tool call.

    Args:
        template: which template.
        conversation: up to and with the turn.
        tools: as given to the template.
        prompt: what inference gives before `body`; it may have the first of the turn's words.
        finished: the conversation as rendered.
        body: the turn's own text.

    Raises:
        DataError: naming the message, what is dropped of it, and what to do.
    """
    if what := dropped(template, conversation, -1, tools, finished, body, prompt):
        raise DataError(
            f"message {len(conversation) - 1}: the chat template drops the assistant's {what}, so"
            f" it would not be trained: {_remedy(what)}, or set `chat_template_path` to a template"
            " that shows it"
        )


def _remedy(what: str) -> str:
    if what.startswith("reasoning"):
        return "put it at the start of `content` as <think>…</think>, or remove it from the row"
    if what.startswith("content near"):
        return "put reasoning at the start of `content`, once, and the answer after it in one piece"
    return "remove it from the row"


def left_out(
    template: Template, conversation: list[Message], tools: Any, whole: str, *, answers: bool
) -> list[str]:
    """What the template leaves out of the rendered conversation, in words.

    Args:
        template: which template.
        conversation: all of it.
        tools: as given to the template.
        whole: the conversation as rendered.
        answers: whether to look at the assistant's turns too, where nothing else does.
    """
    found, at = [], 0
    if tools and not template.shows_tools(conversation, tools, whole):
        found.append("the tools")
    for i, message in enumerate(conversation):
        role, texts = message["role"], block_texts(message)
        end = _in_order(texts, whole, at)
        if role == "assistant":
            if answers and (what := dropped(template, conversation, i, tools, whole, whole[at:])):
                found.append(f"the assistant's {what.partition(' near ')[0]}")
        elif (end is None or not _is_telling(role, texts)) and _is_unseen(
            template, conversation, i, tools, whole
        ):
            found.append(f"{role} messages")
        at = end or at
    return list(dict.fromkeys(found))


def _is_telling(role: str, texts: Sequence[str]) -> bool:
    """Whether words of a role that are found in the text are surely the message's own."""
    return role == "user" or (role in COMMON_ROLES and sum(map(len, texts)) >= TELLING)


def _is_unseen(
    template: Template, conversation: list[Message], i: int, tools: Any, whole: str
) -> bool:
    """Whether other words in message `i` would give the very same text."""
    message = conversation[i]
    blocks = isinstance(message.get("content"), list)
    for index in range(len(message["content"]) if blocks else 1):
        if not block_texts(message)[index].strip():
            continue
        changed: Any = MARKERS[0]
        if blocks:
            changed = list(message["content"])
            changed[index : index + 1] = as_blocks(MARKERS[0])
        other = [*conversation[:i], {**message, "content": changed}, *conversation[i + 1 :]]
        try:
            (text,) = template.render([other], tools)
        except DataError:
            continue  # the template reads it, or it could not object
        if text == whole:
            return True
    return False


def dropped(
    template: Template,
    conversation: list[Message],
    i: int,
    tools: Any,
    rendered: str,
    shown: str,
    prompt: str = "",
) -> str:
    """What of an assistant's message the template does not render; empty if it renders all of it.

    Args:
        template: which template.
        conversation: with the message.
        i: its index.
        tools: as given to the template.
        rendered: the conversation as rendered.
        shown: the part of it that the message's words must be in.
        prompt: text before `shown` whose end may be the beginning of the content.
    """
    message = conversation[i]
    calls = message.get("tool_calls") or []
    thoughts = (
        dict.fromkeys(text for _, text, _ in _reasoning(message)) if _reasons(message) else ()
    )
    texts = [*thoughts, *block_texts(message)]
    if not calls and _in_order(texts, shown) is not None:
        return ""
    opened = _opened_by(prompt, text_of(message))
    if not calls and _is_within([*thoughts, text_of(message)[opened:]], shown):
        return ""
    before, after = conversation[:i], conversation[i:][1:]
    return (
        _unmarked(template, before, message, after, tools)
        or _lost_call(template, before, message, after, tools, rendered)
        or _lost_words(template, message, shown, opened)
    )


def _unmarked(
    template: Template, before: list[Message], message: Message, after: list[Message], tools: Any
) -> str:
    """What of the message does not reach the text, whatever its words are."""
    for what, text, marked in (*_reasoning(message), *_content(message)):
        if not text:
            continue
        try:
            (shown,) = template.render([[*before, marked, *after]], tools)
        except DataError:
            continue  # the template reads it, or it could not object
        if MARKERS[0] not in shown:
            return what
    return ""


def _lost_call(
    template: Template,
    before: list[Message],
    message: Message,
    after: list[Message],
    tools: Any,
    rendered: str,
) -> str:
    """`tool call`, if the text is the same without one of the message's calls."""
    calls = message.get("tool_calls") or []
    for index in range(len(calls)):
        others = [*calls[:index], *calls[index + 1 :]]
        lesser = {k: v for k, v in message.items() if k != "tool_calls"}
        lesser.setdefault("content", "")
        if others:
            lesser["tool_calls"] = others
        try:
            (text,) = template.render([[*before, lesser, *after]], tools)
        except DataError:
            continue  # the template needs it, so it reads it
        if text == rendered:
            return "tool call"
    return ""


def _lost_words(template: Template, message: Message, shown: str, opened: int) -> str:
    """The first words of the message that `shown` does not have in their order."""
    for what, text, _ in _reasoning(message):
        if _missing(template, [text], shown):
            return what
    first, *others = block_texts(message) or [""]
    near = _missing(template, [first[opened:], *others], shown)
    return f"content near {near!r}" if near else ""


def _missing(template: Template, texts: Sequence[str], shown: str) -> str:
    """Where the first word stands that `shown` lacks; words are parted by space and by tags."""
    at = 0
    for text in texts:
        begin = 0
        for piece in template.pieces(text):
            here, begin = begin, begin + len(piece)
            if piece.isspace():
                continue
            found = shown.find(piece, at)
            if found < 0:
                return text[max(0, here - 20) : begin + 20]
            at = found + len(piece)
    return ""


def _in_order(texts: Sequence[str], shown: str, at: int = 0) -> int | None:
    """Where the last of the texts ends in `shown`, one after the other; None if one is not there."""
    for text in texts:
        words = text.strip()
        found = shown.find(words, at)
        if found < 0:
            return None
        at = found + len(words)
    return at


def _is_within(texts: Sequence[str], shown: str) -> bool:
    """As `_in_order`, but whitespace does not count."""
    return _in_order(["".join(t.split()) for t in texts], "".join(shown.split())) is not None


def _opened_by(prompt: str, content: str) -> int:
    """How many characters of the content the prompt ends with, such as its `<think>`."""
    before, start = prompt.rstrip(), len(content) - len(content.lstrip())
    words = content[start : start + 64]
    for length in range(len(words), 0, -1):
        if before.endswith(words[:length]):
            return start + length
    return 0


def _reasons(message: Message) -> bool:
    return any(message.get(field) for field in REASONING_FIELDS)


def _reasoning(message: Message) -> Iterator[Said]:
    """The reasoning fields; those that say the same count as one."""
    fields: dict[str, list[str]] = {}
    for field in REASONING_FIELDS:
        if value := message.get(field):
            fields.setdefault(str(value).strip(), []).append(field)
    for text, names in fields.items():
        marked = {**message, **dict.fromkeys(names, MARKERS[0])}
        yield f"reasoning ({' = '.join(f'`{name}`' for name in names)})", text, marked


def _content(message: Message) -> Iterator[Said]:
    """The content as a whole; its blocks are looked for one by one in the text."""
    marked = as_blocks(MARKERS[0]) if isinstance(message.get("content"), list) else MARKERS[0]
    yield "content", text_of(message).strip(), {**message, "content": marked}
