"""Completions by transformers' `generate`, batch after batch: the engine that runs everywhere.

Greedily, or sampled with each prompt's own seed: then a prompt's completion does not depend on what
else is in its batch, up to the rounding of the model's own logits, which in float32 changes nothing
and in half precision may now and then turn one word.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation import StoppingCriteriaList

from toolkit.errors import DataError, RecipeError, TrainingError
from toolkit.inference.batch import Batch
from toolkit.inference.decoding import (
    Limits,
    RefuseNaN,
    SeededDraw,
    StopStrings,
    uniforms,
    warpers,
)
from toolkit.inference.engine import Completion, Prompt, Sampling, longest
from toolkit.inference.lent_adapters import add_adapter, add_judge, speaking
from toolkit.inference.likelihood import log_probabilities
from toolkit.inference.likelihood import scores as scores_of
from toolkit.models.load import stop_token_ids

__all__ = ["Completion", "Prompt", "Sampling", "TransformersEngine"]


class TransformersEngine:
    """Completes prompts with a model in memory, whose state and settings it leaves as they were.

    Args:
        model: a causal language model, with or without an adapter, where it is to run.
        tokenizer: its tokenizer.
        batch_size: how many prompts are completed together.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 32):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.stop_ids = stop_token_ids(model, tokenizer)
        self.stop_set = frozenset(self.stop_ids)
        pad: Any = tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else (*self.stop_ids, 0)[0]

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Complete every prompt, the longest first: memory runs out at once or never.

        Yields:
            The index of a prompt and its completion, batch after batch.

        Raises:
            RecipeError: at the call, if a prompt leaves no room for its completion.
            DataError: at the call, if a prompt is empty.
            TrainingError: if the device has not enough memory, or the model gives NaN.
        """
        for prompt in prompts:
            self.check_length(prompt, longest(prompt, sampling))
            speaking(self.model, prompt.adapter)
        return self._batches(prompts, sampling)

    def log_probabilities(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """As of `Engine`."""
        found: list[list[float]] = [[] for _ in prompts]
        for adapter, batch in self._by_adapter(prompts):
            rows = [(prompts[index].input_ids, answers[index]) for index in batch]
            with in_evaluation(self.model), speaking(self.model, adapter):
                for index, row in zip(batch, log_probabilities(self.model, rows), strict=True):
                    found[index] = row
        return found

    def add_adapter(self, name: str, directory: str) -> None:
        """Put another adapter over the same base; a prompt names it in `adapter`.

        Args:
            name: what prompts call it.
            directory: its folder or Hub id.

        Raises:
            RecipeError: if it is none that writes, has other words, or does not fit the base.
        """
        self.model = add_adapter(self.model, self.tokenizer, name, directory)

    def add_judge(self, name: str, directory: str) -> None:
        """Put a reward adapter over the same base, for `scores`; arguments as of `add_adapter`."""
        self.model = add_judge(self.model, self.tokenizer, name, directory)

    def scores(self, judge: str, sequences: Sequence[Sequence[int]]) -> list[float]:
        """What a reward adapter gives for whole sequences of a prompt and its answer.

        Args:
            judge: its name, as of `add_judge`.
            sequences: token ids, at least one of each.
        """
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        found = [0.0] * len(sequences)
        with in_evaluation(self.model):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                rows = [sequences[index] for index in batch]
                for index, score in zip(batch, scores_of(self.model, judge, rows), strict=True):
                    found[index] = score
        return found

    @property
    def positions(self) -> int:
        """How many tokens a prompt and its completion may have together; 0 for no limit."""
        config = self.model.config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None) or 0

    def check_length(self, prompt: Prompt, max_completion_length: int) -> None:
        """Refuse a prompt that is empty, or too long for the model together with its completion."""
        if not prompt.input_ids:
            raise DataError(f"{prompt.where}: the prompt has no tokens")
        positions, length = self.positions, len(prompt.input_ids)
        if 0 < positions < length + max_completion_length:
            room = positions - length
            advice = f"lower max_completion_length to {room}" if room > 0 else "shorten the prompt"
            raise RecipeError(
                f"{prompt.where}: {length} tokens of prompt and max_completion_length "
                f"{max_completion_length} are more than the {positions} positions of the model; "
                f"{advice}"
            )

    def _batches(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        for adapter, batch in self._by_adapter(prompts):
            late = [index for index in batch if is_over(prompts[index])]
            yield from ((index, Completion("", [], stopped=False)) for index in late)
            if mine := [index for index in batch if index not in late]:
                with speaking(self.model, adapter):
                    completions = self._complete([prompts[index] for index in mine], sampling)
                yield from zip(mine, completions, strict=True)

    def _by_adapter(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str | None, list[int]]]:
        """Batches of prompts for one adapter each, by their positions; of each the longest first."""
        for adapter in dict.fromkeys(prompt.adapter for prompt in prompts):
            mine = [index for index, prompt in enumerate(prompts) if prompt.adapter == adapter]
            mine.sort(key=lambda index: -len(prompts[index].input_ids))
            for start in range(0, len(mine), self.batch_size):
                yield adapter, mine[start : start + self.batch_size]

    def _complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """The completions of one batch."""
        batch = Batch([prompt.input_ids for prompt in prompts], self.pad_id, self.model.device)
        found: dict[int, Completion] = {}
        with self.completing(len(prompts)):
            self.read_shared(batch)
            while batch.rows:
                left = [prompts[row] for row in batch.rows]
                steps = batch.next_steps(sampling.max_completion_length)
                found |= self.go_on(batch, left, sampling, steps)
        return [found[row] for row in range(len(prompts))]

    @contextmanager
    def completing(self, count: int) -> Iterator[None]:
        """Inside the block, the model completes so many prompts.

        Raises:
            TrainingError: if the device has not enough memory for them.
        """
        try:
            with as_for_generation(self.model, self._settings(1)):
                yield
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the device has not enough memory to complete {count} prompts at a time "
                f"({str(error).splitlines()[0]}); lower per_device_eval_batch_size or "
                "max_completion_length"
            ) from error

    def read_shared(self, batch: Batch) -> None:
        """Read prompts that several rows have, once."""
        if (shared := batch.shared()) is not None:
            batch.spread(self._generate(shared, 1).past_key_values)

    def go_on(
        self, batch: Batch, left: Sequence[Prompt], sampling: Sampling, steps: int
    ) -> dict[int, Completion]:
        """Some more steps for the rows that are left; the completions of those that end with it.

        Args:
            batch: on its way.
            left: the prompt of each of its rows.
            sampling: how tokens are chosen.
            steps: how many at most.
        """
        ends = StopStrings(self.tokenizer, [each.stop_strings for each in left], batch.starts)
        limits = Limits(left, batch.starts)
        criteria = [each for each in (ends, limits) if each.is_needed]
        made = self._generate(
            batch.inputs(),
            steps,
            logits_processor=processors(left, sampling, batch.starts, self.model.device),
            stopping_criteria=StoppingCriteriaList(criteria),
        )
        written = batch.extend(made.sequences, made.past_key_values)
        found: dict[int, Completion] = {}
        remaining: list[int] = []
        for place, row in enumerate(batch.rows):
            is_last = len(written[place]) >= sampling.max_completion_length
            ended = ends.lengths[place] is not None or not self.stop_set.isdisjoint(written[place])
            if ended or is_last or limits.lengths[place] is not None:
                # what comes behind a limit is fill
                kept = written[place][: limits.lengths[place]]
                strings = left[place].stop_strings
                found[row] = self._finish(kept, ends.lengths[place], strings)
            else:
                remaining.append(place)
        batch.keep(remaining)
        return found

    def _generate(self, inputs: Mapping[str, Any], steps: int, **given: Any) -> Any:
        """So many steps of transformers' loop."""
        return self.model.generate(**inputs, generation_config=self._settings(steps), **given)

    def _settings(self, steps: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=steps,
            do_sample=False,  # SeededDraw draws
            use_cache=True,
            eos_token_id=self.stop_ids or None,
            pad_token_id=self.pad_id,
            return_dict_in_generate=True,
        )

    def _finish(
        self, row: list[int], length: int | None, stop_strings: tuple[str, ...]
    ) -> Completion:
        """A completion without what fills its row after its end.

        Args:
            row: what was generated, and the fill.
            length: how many tokens it had when a stop string ended it.
            stop_strings: the prompt's.
        """
        stop = next((i for i, token in enumerate(row) if token in self.stop_ids), None)
        if length is not None and length <= len(row) and (stop is None or length <= stop):
            kept = written = row[:length]
        elif stop is not None:
            kept, written = row[: stop + 1], row[:stop]
        else:
            kept = written = row
        text = str(self.tokenizer.decode(written, skip_special_tokens=True))
        cuts = [text.index(string) for string in stop_strings if string in text]
        stopped = stop is not None or bool(cuts)
        return Completion(text[: min(cuts)] if cuts else text, kept, stopped)


def processors(
    prompts: Sequence[Prompt], sampling: Sampling, starts: Sequence[int], device: Any
) -> LogitsProcessorList:
    """What makes of the logits of a batch the token of each row.

    Args:
        prompts: the batch.
        sampling: how tokens are chosen.
        starts: where the completion of each row begins.
        device: where the logits are.
    """
    found = LogitsProcessorList([RefuseNaN(max(starts))])
    if sampling.temperature == 0:
        return found
    found += warpers(sampling.temperature, sampling.top_k, sampling.top_p)
    numbers_BS = uniforms([prompt.seed for prompt in prompts], sampling.max_completion_length)
    if device.type != "mps":
        numbers_BS = numbers_BS.to(device)
    found.append(SeededDraw(numbers_BS, starts))
    return found


@contextmanager
def as_for_generation(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put a model into evaluation mode, with nothing of its own generation_config.json in force.

    `generate` fills every setting that is not given with the model's own, such as a repetition
    penalty, so the model's own is put aside; all of it is put back.
    """
    layers = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    owners = [layer for layer in layers if "generation_config" in vars(layer)]
    settings = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = config
    try:
        with in_evaluation(model):
            yield
    finally:
        for owner, setting in zip(owners, settings, strict=True):
            owner.generation_config = setting


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode without gradients; what was training trains on afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def is_over(prompt: Prompt) -> bool:
    """Whether the time of a prompt is over before it has begun."""
    return prompt.deadline is not None and time.monotonic() >= prompt.deadline
