"""A Modelfile for Ollama: the trained chat template in Go's words, and the trained stop tokens.

Ollama cannot run the Jinja template that a tokenizer or a GGUF file holds. Most templates are a row
of turns, each a text before and a text after its content; those are written down here, and compared
with the template itself.
"""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

ROLES = ("system", "user", "assistant")
MARK = "§content§"
GGUF = "model.gguf"
# what the turns must give again, role by role
CONVERSATIONS = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user"),
)


@dataclass(frozen=True)
class Turns:
    """A chat template that is a row of turns.

    Attributes:
        start: before the first turn, such as the bos token.
        around: of each role, the texts before and after its content.
        prompt: after the last turn, where the model begins to speak.
    """

    start: str
    around: dict[str, tuple[str, str]]
    prompt: str


def modelfile(words: Any, stops: list[str]) -> str | None:
    """The text of a Modelfile; None where no row of turns gives what the template gives.

    Args:
        words: a tokenizer with a chat template.
        stops: the text of every token that ends an answer.
    """
    turns = turns_of(words)
    texts = [] if turns is None else [turns.prompt, *stops, *sum(turns.around.values(), ())]
    if turns is None or any("{{" in text or '"""' in text for text in texts):
        return None
    cases = [
        f'{{{{ {"else " if at else ""}if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for at, (role, (before, after)) in enumerate(turns.around.items())
    ]
    # Ollama puts the bos token first by itself, as the GGUF file says
    rows = f"{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{turns.prompt}"
    lines = [f"FROM ./{GGUF}", f'TEMPLATE """{rows}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def turns_of(words: Any) -> Turns | None:
    """What a tokenizer's chat template puts around each turn; None if it is no row of turns."""
    try:
        turns = read_turns(words)
        known = [roles for roles in CONVERSATIONS if set(roles) <= turns.around.keys()]
        right = all(
            render(words, roles, prompt=True) == compose(turns, roles, words) for roles in known
        )
    except (TemplateError, ValueError, TypeError, KeyError):
        return None
    return turns if right else None


def read_turns(words: Any) -> Turns:
    """The turns of a template, read off conversations that grow by one message.

    Raises:
        ValueError: if a conversation does not begin with the shorter one.
    """
    asked = render(words, ("user",))
    answered = render(words, ("user", "assistant"))
    again = render(words, ("user", "assistant", "user"))
    user = around(added(answered, again))
    block = user[0] + MARK + user[1]
    if not asked.endswith(block):
        raise ValueError("the first turn is unlike the second")
    start = asked.removesuffix(block)
    found = {"user": user, "assistant": around(added(asked, answered))}
    try:
        instructed = render(words, ("system", "user"))
        if instructed.startswith(start) and instructed.endswith(block):
            found = {"system": around(added(start, instructed.removesuffix(block)))} | found
    except (TemplateError, ValueError):  # many templates know no system message
        pass
    return Turns(start, found, added(asked, render(words, ("user",), prompt=True)))


def render(words: Any, roles: tuple[str, ...], *, prompt: bool = False) -> str:
    """What the template makes of a conversation whose every content is `MARK`."""
    messages = [{"role": role, "content": MARK} for role in roles]
    return words.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def compose(turns: Turns, roles: tuple[str, ...], words: Any) -> str:
    """What the turns make of a conversation, with nothing before the first but the bos token.

    Raises:
        ValueError: if the template begins with more, such as a system message of its own.
    """
    if turns.start not in ("", words.bos_token):
        raise ValueError("the template begins with words of its own")
    told = [MARK.join(turns.around[role]) for role in roles]
    return turns.start + "".join(told) + turns.prompt


def added(shorter: str, longer: str) -> str:
    """What the longer text has more.

    Raises:
        ValueError: if it does not begin with the shorter one.
    """
    if not longer.startswith(shorter):
        raise ValueError("a longer conversation does not begin with the shorter one")
    return longer[len(shorter) :]


def around(turn: str) -> tuple[str, str]:
    """The texts before and after a turn's content.

    Raises:
        ValueError: if it holds its content not once.
    """
    before, after = turn.split(MARK)
    return before, after
