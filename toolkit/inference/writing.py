"""Completions that can be watched while they grow, joined by others, and given up one by one.

The loop is the engine's own, a few steps at a time, so a completion is the one that `generate` gives.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import RecipeError
from toolkit.inference.batch import STEPS, Batch
from toolkit.inference.engine import Completion, Prompt, Sampling, longest
from toolkit.inference.lent_adapters import speaking
from toolkit.inference.sampling import TransformersEngine, is_over

QUICK_S, SLOW_S = 0.05, 0.15
"""A look at what was written comes after so many seconds, as far as whole steps allow."""
UNFINISHED = "\ufffd"
"""What a character is decoded to while some of its bytes are still to come."""


@dataclass(frozen=True)
class Progress:
    """What is new of a completion.

    Attributes:
        row: which one.
        text: what came since the last time; joined, the text of the completion.
        tokens: how many were written so far.
        completion: the whole, when it has ended.
    """

    row: int
    text: str
    tokens: int
    completion: Completion | None = None


class Writing:
    """Prompts of one adapter that are completed together, a few steps at a time.

    Args:
        engine: writes.
        prompts: at least one.
        sampling: how tokens are chosen.
        numbers: of the rows; by default from 0.

    Raises:
        RecipeError: if a prompt leaves no room for its completion, or there is no such adapter.
        DataError: if a prompt is empty.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        numbers: Sequence[int] | None = None,
    ):
        for prompt in prompts:
            engine.check_length(prompt, longest(prompt, sampling))
        self.adapter = prompts[0].adapter
        if any(prompt.adapter != self.adapter for prompt in prompts):
            raise RecipeError("prompts of several adapters cannot be completed in one batch")
        speaking(engine.model, self.adapter)
        self.engine, self.sampling = engine, sampling
        self.batch = Batch([each.input_ids for each in prompts], engine.pad_id, engine.model.device)
        self.batch.rows = list(numbers or self.batch.rows)
        self.prompts = dict(zip(self.batch.rows, prompts, strict=True))
        self.shown = dict.fromkeys(self.batch.rows, "")
        self.has_begun = False
        self.steps = 1  # the first token comes soon

    @property
    def rows(self) -> list[int]:
        """Those that have not ended."""
        return self.batch.rows

    def advance(self) -> list[Progress]:
        """Some more steps.

        Returns:
            What is new of every row.

        Raises:
            TrainingError: if the device has not enough memory, or the model gives NaN.
        """
        ended = {row: Completion("", [], stopped=False) for row in self.rows if self._is_late(row)}
        self._keep([row for row in self.rows if row not in ended])
        if self.rows:
            ended |= self._go_on()
        grown = dict(zip(self.rows, self.batch.written(), strict=True))
        found = [self._growth(row, ids) for row, ids in grown.items()]
        found += [self._end(row, completion) for row, completion in ended.items()]
        self.batch.trim()
        return found

    def drop(self, row: int) -> None:
        """Give up a completion; the others go on."""
        self._keep([each for each in self.rows if each != row])
        self.prompts.pop(row, None)
        self.shown.pop(row, None)

    def give_up(self) -> None:
        """Give up all of them, as after an error."""
        self.batch.rows, self.batch.cache = [], None

    def can_join(self, other: "Writing") -> bool:
        """Whether the rows of another go on with these from now on as one batch."""
        same = (self.adapter, self.sampling) == (other.adapter, other.sampling)
        begun = self.has_begun and other.has_begun and bool(self.rows and other.rows)
        return same and begun and self.batch.can_join and other.batch.can_join

    def join(self, other: "Writing") -> None:
        """Take in the rows of another, which then has none; see `can_join`."""
        self.batch.join(other.batch)
        self.prompts |= other.prompts
        self.shown |= other.shown

    def _is_late(self, row: int) -> bool:
        return not self.has_begun and is_over(self.prompts[row])

    def _keep(self, rows: list[int]) -> None:
        self.batch.keep([place for place, row in enumerate(self.rows) if row in rows])

    def _go_on(self) -> dict[int, Completion]:
        started = time.monotonic()
        batch, engine = self.batch, self.engine
        left = [self.prompts[row] for row in self.rows]
        with engine.completing(len(left)), speaking(engine.model, self.adapter):
            if not self.has_begun:
                engine.read_shared(batch)
                self.has_begun = True
            room = batch.next_steps(self.sampling.max_completion_length)
            # A cache whose rows cannot be chosen is not kept: then looks are dear
            steps = min(room, self.steps if batch.cache_fits else 4 * STEPS)
            found = engine.go_on(batch, left, self.sampling, steps)
        took = time.monotonic() - started
        if took < QUICK_S:
            self.steps = min(STEPS, 2 * self.steps)
        elif took > SLOW_S:
            self.steps = max(1, self.steps // 2)
        return found

    def _growth(self, row: int, ids: list[int]) -> Progress:
        text = str(self.engine.tokenizer.decode(ids, skip_special_tokens=True))
        text = settled(text, self.prompts[row].stop_strings)
        return Progress(row, self._more(row, text), len(ids))

    def _end(self, row: int, completion: Completion) -> Progress:
        more = self._more(row, completion.text)
        del self.prompts[row], self.shown[row]
        return Progress(row, more, len(completion.input_ids), completion)

    def _more(self, row: int, text: str) -> str:
        """What of a text has not been shown; nothing while it is no continuation."""
        before = self.shown[row]
        if not text.startswith(before):
            return ""
        self.shown[row] = text
        return text[len(before) :]


def settled(text: str, stop_strings: Sequence[str]) -> str:
    """What of an unfinished text stays whatever comes next.

    Args:
        text: decoded from the tokens so far.
        stop_strings: of which the text may hold the beginning of one.
    """
    text = text.rstrip(UNFINISHED)
    begun = (
        length
        for string in stop_strings
        for length in range(1, len(string))
        if text.endswith(string[:length])
    )
    return text[: len(text) - max(begun, default=0)]
