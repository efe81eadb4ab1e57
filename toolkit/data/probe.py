"""What a tokenizer makes of a fixed text and a fixed chat: if that changed, so did every prompt."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.template_render import Template
from toolkit.errors import DataError

TEXT = "Naïve café: 3 + 4 = 7.\n\tif x < 10: return None"
CHAT = [
    {"role": "user", "content": "Name two primes."},
    {"role": "assistant", "content": "2 and 3."},
]
NOW = "strftime_now"  # what a template calls that writes the date of today


def probe_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a tokenizer makes of the fixed text and chat, as plain data.

    Returns:
        The ids of the `text`; of the `chat` and of its `prompt`, None where the template refuses it or
        there is none; and a digest of the `template`.
    """
    found: dict[str, Any] = {"text": tokenizer(TEXT)["input_ids"], "chat": None, "prompt": None}
    template = tokenizer.chat_template
    found["template"] = None if template is None else _digest(template)
    if template is None or NOW in str(template):
        return found
    shown = Template(tokenizer)
    try:
        for name, messages in (("chat", CHAT), ("prompt", CHAT[:1])):
            read = shown.normalise(messages, None)
            (text,) = shown.render([read], None, prompt=name == "prompt")
            found[name] = tokenizer(text, add_special_tokens=False)["input_ids"]
    except DataError:
        pass  # it reads another kind of conversation; its text is compared
    return found


def changed_words(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what two tokenizers differ, by `probe_words` of both, in words; None if in nothing."""
    if before.get("template") != now.get("template"):
        if now.get("template") is None:
            return "the chat template is missing"
        return "the chat template is not the one that was trained"
    for name, said in (("chat", "a chat"), ("prompt", "a prompt"), ("text", "a text")):
        if before.get(name) != now.get(name):
            return f"the tokenizer makes other tokens of {said} than those that were trained"
    return None


def _digest(template: Any) -> str:
    """Of one template, or of several by name."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
