"""Control tokens spelled out in what others say: they would end a turn, or begin the assistant's."""

import json
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import state_of
from toolkit.data.template_render import CONTROL_TEXT, Message, Template, text_of
from toolkit.errors import DataError

_WORDS: WeakKeyDictionary[Template, re.Pattern[str]] = WeakKeyDictionary()


def check_spoken(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Any = None
) -> None:
    """Check that nobody but the assistant says a control token, and no tool has one.

    A tokenizer reads them in any text as it reads those of the template. The assistant's own turns
    are looked at where they are trained.

    Args:
        tokenizer: with a chat template.
        messages: a conversation.
        tools: that it offers.

    Raises:
        DataError: naming the message and the token.
    """
    template, _ = state_of(tokenizer, None)
    if template not in _WORDS:
        _WORDS[template] = _words(tokenizer, template)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            _check(text_of(message), f"message {index}: the {message['role']}'s", _WORDS[template])
    if tools:
        text = json.dumps(tools, ensure_ascii=False, default=str)
        _check(text, "the tools'", _WORDS[template])


def _words(tokenizer: PreTrainedTokenizerBase, template: Template) -> re.Pattern[str]:
    """What the tokenizer reads as one token of control, and how the template ends a turn.

    One expression, for a tokenizer may have thousands of them.
    """
    added = tokenizer.added_tokens_decoder.values()
    words = {token.content for token in added if token.special and token.content.strip()}
    words |= {stop for stop in template.stops if re.fullmatch(CONTROL_TEXT, stop)}
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


def _check(text: str, whose: str, words: re.Pattern[str]) -> None:
    if (found := words.search(text)) is not None:
        raise DataError(
            f"{whose} text contains {found[0]!r}, which is read as a control token, not as these "
            "letters: write it otherwise, such as with a space inside"
        )
