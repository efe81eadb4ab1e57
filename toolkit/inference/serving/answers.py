"""Answers in OpenAI's format: whole, and in pieces."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.inference.engine import Completion

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Head:
    """What all pieces of an answer have in common.

    Attributes:
        key: of this answer.
        created: in seconds since 1970.
        model: by the name that the client used.
    """

    key: str
    created: int
    model: str

    def whole(self, completions: Sequence[Completion], prompt_tokens: int) -> dict[str, Any]:
        """All answers to a request."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": each.text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason(each),
            }
            for index, each in enumerate(completions)
        ]
        written = sum(len(each.input_ids) for each in completions)
        return {
            **self._named("chat.completion"),
            "choices": choices,
            "usage": usage(prompt_tokens, written),
        }

    def piece(self, index: int, delta: Mapping[str, Any], ended: Completion | None = None) -> bytes:
        """A piece of one answer."""
        finish = None if ended is None else reason(ended)
        choice = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
        return event({**self._named("chat.completion.chunk"), "choices": [choice]})

    def counts(self, prompt_tokens: int, written: int) -> bytes:
        """The last piece of a stream that is to end with the counts."""
        counted = usage(prompt_tokens, written)
        return event({**self._named("chat.completion.chunk"), "choices": [], "usage": counted})

    def _named(self, kind: str) -> dict[str, Any]:
        return {"id": self.key, "object": kind, "created": self.created, "model": self.model}


def reason(completion: Completion) -> str:
    """Why an answer ended."""
    return "stop" if completion.stopped else "length"


def usage(prompt_tokens: int, written: int) -> dict[str, int]:
    """The counts: the prompt once, and every token that was written, stop tokens included."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


def event(value: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
