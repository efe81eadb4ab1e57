"""One assistant turn as text: what inference gives, what the model must add, what follows it."""

from typing import Any, NamedTuple

from toolkit.data.chat_kept import check_kept
from toolkit.data.template_render import MARKERS, Ending, Message, Template, marked_message, text_of
from toolkit.errors import DataError


class Turn(NamedTuple):
    """One assistant turn as text; only `answer` is trained."""

    prompt: str
    answer: str
    trailer: str


def turn_at(
    template: Template, conversation: list[Message], i: int, tools: Any, prompt: str, finished: str
) -> Turn:
    """The assistant turn at index `i`, as inference would see it generated.

    Raises:
        DataError: if what the model must produce cannot be known from what the template renders.
    """
    context, message = conversation[:i], conversation[i]
    opened = prompt
    rest: str | None = finished[len(prompt) :]
    if not finished.startswith(prompt):
        rest = _after_header(template, conversation, i, tools, prompt, finished)
    if rest is None:
        opened = prompt.removesuffix(prefill_of(template, context, message, tools, prompt))
        if opened == prompt or not finished.startswith(opened):
            raise _unknown(i, prompt)
        rest = finished[len(opened) :]
    ending = _ending(template, conversation, i, tools, rest)
    body = rest if ending.borrowed else rest[: len(rest) - len(ending.stop + ending.trailer)]
    if opened != prompt:
        said = _after_prefill(message, body, prompt[len(opened) :])
        if said is None:
            raise _unknown(i, prompt)
        body = said
    for stop in {ending.stop, *template.stops}:
        if stop in body:
            raise DataError(
                f"message {i}: the assistant's text contains {stop!r}, which ends a turn:"
                " remove it from the row"
            )
    turn = conversation[: i + 1]
    check_kept(
        template, turn, tools, prompt=opened, finished=finished, body=prompt[len(opened) :] + body
    )
    return Turn(prompt, body + ending.stop, ending.trailer)


def _ending(
    template: Template, conversation: list[Message], i: int, tools: Any, rest: str
) -> Ending:
    """How turn `i` ends, checked against its own text."""
    context, message = conversation[:i], conversation[i]
    following = conversation[i + 1]["role"] if i + 1 < len(conversation) else ""
    if following not in ("user", "tool"):
        following = "tool" if message.get("tool_calls") else "user"
    for fresh in (False, True):
        try:
            ending = template.ending(context, message, following, tools, fresh=fresh)
        except DataError as error:
            raise DataError(f"message {i}: {error}") from error
        if ending.borrowed or rest.endswith(ending.stop + ending.trailer):
            return ending
    raise DataError(f"message {i}: the chat template does not end this turn with {ending.stop!r}")


def prefill_of(
    template: Template, context: list[Message], message: Message, tools: Any, prompt: str
) -> str:
    """What the generation prompt has after the header that every finished turn begins with."""
    marked = [[*context, marked_message(message, marker)] for marker in MARKERS]
    finished = template.render(marked, tools)
    return prompt[template.common_length(prompt, *finished) :]


def _after_header(
    template: Template, conversation: list[Message], i: int, tools: Any, prompt: str, finished: str
) -> str | None:
    """The turn's own text where finishing it changes how earlier messages are rendered.

    It is known if the same message after the first user message alone is rendered with that text
    after its prompt, and the finished conversation ends with the same header and text. Else None.
    """
    first = next((k for k, m in enumerate(conversation[:i]) if m["role"] == "user"), None)
    # Two assistant messages in a row may be rendered as one turn, whose header is not this one's.
    if first is not None and conversation[i - 1]["role"] != "assistant":
        short = conversation[: first + 1]
        before, alone = template.render([conversation[:i], [*short, conversation[i]]], tools)
        (short_prompt,) = template.render([short], tools, prompt=True)
        header, rest = prompt.removeprefix(before), alone.removeprefix(short_prompt)
        told = prompt != header != "" and header.strip() and rest != alone
        if told and short_prompt.endswith(header) and finished.endswith(header + rest):
            return rest
    return None


def _after_prefill(message: Message, body: str, prefill: str) -> str | None:
    """What the model must add to `prefill` where the finished turn no longer shows it.

    The row says it only if its content begins with the prefill, and the template renders the end of
    that content: then the rest is the assistant's, word for word. Otherwise None.
    """
    content = text_of(message)
    end = content.rfind(body) + len(body) if body else len(content.rstrip())
    kept = content.endswith(body) or (body in content and not content[end:].strip())
    if not kept or not content.startswith(prefill) or len(prefill) + len(body) > end:
        return None
    return content[len(prefill) : end]


def _unknown(i: int, prompt: str) -> DataError:
    return DataError(
        f"message {i}: the generation prompt ends with {prompt[-24:]!r}, and the finished turn goes"
        " on from other text, so what the model must produce is unknown: where the prompt opens"
        " thinking, begin the content with the same words or give `reasoning_content`; where it"
        " closes thinking, remove the reasoning; or change the chat template's generation prompt"
    )
