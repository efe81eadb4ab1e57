"""Text to token ids without losing where the trained text begins and ends.

A tokenizer may merge letters over any boundary, so that the tokens of a whole text need not begin
with the tokens of its beginning. Training must see what inference sees: the prompt's own tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from toolkit.errors import DataError

IGNORED = -100  # the label that carries no loss, in every model of transformers
# Text that keeps a tokenizer from putting its prefix space before the continuation.
ANCHORS = ("", "\n", ".", "a", "0", "|")


class Encoded(NamedTuple):
    """Token ids of a text, and the range of characters of each where the tokenizer knows it."""

    ids: list[int]
    offsets: list[tuple[int, int]] | None


class Encoder:
    """A tokenizer, as inference uses it on text that already has its special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.is_fast = tokenizer.is_fast
        # A `single_word` token looks at its neighbours, so it does not part the text for certain.
        self.parting = {
            index: token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if not token.single_word
        }
        self.headers: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`, none added."""
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False).input_ids

    def encode(self, text: str) -> Encoded:
        """The tokens of `text`, with offsets from a fast tokenizer."""
        if not self.is_fast:
            return Encoded(self.ids(text), None)
        encoding = self.tokenizer(
            text,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        return Encoded(encoding["input_ids"], encoding["offset_mapping"])

    def labelled(self, text: str, spans: Sequence[tuple[int, int]]) -> dict[str, list[int]] | None:
        """The tokens of `text` with labels in the spans of characters; None where one is torn.

        A span holds if the text up to each of its ends, tokenised by itself, gives the very tokens
        that the whole text begins with.
        """
        encoded = self.encode(text)
        labels = [IGNORED] * len(encoded.ids)
        for start, end in spans:
            first = self._boundary(encoded, text, start)
            last = self._boundary(encoded, text, end)
            if first is None or last is None or first >= last:
                return None
            labels[first:last] = encoded.ids[first:last]
        return {"input_ids": encoded.ids, "labels": labels}

    def joined(self, prompt: str, answer: str, trailer: str) -> dict[str, list[int]]:
        """The prompt's own tokens, then the answer's, labelled, then the trailer's.

        Raises:
            DataError: if the tokenizer cannot continue the prompt with the answer's text.
        """
        return self.continued(self.ids(prompt), prompt, answer, trailer)

    def continued(
        self, before: list[int], prompt: str, answer: str, trailer: str = ""
    ) -> dict[str, list[int]]:
        """As `joined`, with the prompt's tokens given."""
        trained = self._continuation(before, prompt, answer)
        after = self._continuation(before + trained, prompt + answer, trailer)
        return {
            "input_ids": before + trained + after,
            "labels": [IGNORED] * len(before) + trained + [IGNORED] * len(after),
        }

    def _continuation(self, before: list[int], prompt: str, text: str) -> list[int]:
        if not text:
            return []
        whole = self.ids(prompt + text)
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
        wanted = self._decode(before) + text
        for anchor in ANCHORS:
            start = self.ids(anchor) if anchor else []
            anchored = self.ids(anchor + text)
            rest = anchored[len(start) :]
            if anchored[: len(start)] == start and self._decode(before + rest) == wanted:
                return rest
        raise DataError(
            f"the tokenizer cannot continue the prompt's tokens with {text[:40]!r}:"
            " it merges them or loses characters; no exact mask exists"
        )

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _tail(self, text: str) -> list[int]:
        """The tokens of a short text that recurs, such as the header of an assistant turn."""
        if len(text) > 64:
            return self.ids(text)
        if text not in self.headers:
            if len(self.headers) >= 1024:
                self.headers.clear()
            self.headers[text] = self.ids(text)
        return self.headers[text]

    def _boundary(self, encoded: Encoded, text: str, at: int) -> int | None:
        """How many tokens `text[:at]` has, if they are those that the whole text begins with."""
        ids, offsets = encoded
        if at == len(text):
            return len(ids)
        if offsets is not None:
            found = self._parted(ids, offsets, text, at)
            if found is not None:
                return found
        before = self.ids(text[:at])
        return len(before) if ids[: len(before)] == before else None

    def _parted(
        self, ids: list[int], offsets: list[tuple[int, int]], text: str, at: int
    ) -> int | None:
        """The boundary, where an added token close before it makes a short comparison enough.

        An added token parts the text: what follows it is tokenised without regard to what precedes
        it. So only the text from the last one to the boundary has to be tokenised again.
        """
        index = bisect_left(offsets, (at, at))
        if index < len(ids) and ids[index] in self.parting and offsets[index][0] == at:
            return index
        start = index - 1
        while start >= 0 and ids[start] not in self.parting:
            start -= 1
        if start < 0:
            return None
        begin, end = offsets[start]
        if text[begin:end] != self.parting[ids[start]] or end > at:
            return None  # the token took whitespace with it, or offsets are not what they seem
        if end == at:
            return start + 1
        tail = self._tail(text[begin:at])
        return start + len(tail) if ids[start : start + len(tail)] == tail else None
