"""Completions by transformers' `generate`, batch after batch.

Greedily, or sampled with each prompt's own seed: then a prompt's completion does not depend on what
else is in its batch, up to the rounding of the model's own logits, which in float32 changes nothing
and in half precision may now and then turn one word.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation import StoppingCriteriaList

from toolkit.errors import DataError, RecipeError, TrainingError
from toolkit.inference.batch import Batch
from toolkit.inference.decoding import RefuseNaN, SeededDraw, StopStrings, uniforms, warpers
from toolkit.models.load import stop_token_ids


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, in the words of a recipe.

    Attributes:
        max_completion_length: tokens of a completion at most.
        temperature: 0 takes the likeliest token.
        top_p: the share of probability that is sampled from.
        top_k: how many tokens are sampled from; 0 for all.
    """

    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Prompt:
    """What is completed.

    Attributes:
        input_ids: its tokens.
        seed: the same prompt and seed give the same completion in any batch.
        stop_strings: what ends the completion beside a stop token, for a base that knows none.
        where: how messages name it, such as "exam.jsonl, row 3".
    """

    input_ids: list[int]
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    where: str = "a prompt"


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: without stop token, special tokens, and the stop string and what follows it.
        input_ids: every token it wrote, a stop token included.
        stopped: whether a stop token or stop string ended it, not `max_completion_length`.
    """

    text: str
    input_ids: list[int]
    stopped: bool


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
            self.check_length(prompt, sampling.max_completion_length)
        return self._batches(prompts, sampling)

    def check_length(self, prompt: Prompt, max_completion_length: int) -> None:
        """Refuse a prompt that is empty, or too long for the model together with its completion."""
        if not prompt.input_ids:
            raise DataError(f"{prompt.where}: the prompt has no tokens")
        config = self.model.config.get_text_config(decoder=True)
        positions = getattr(config, "max_position_embeddings", None) or 0
        length = len(prompt.input_ids)
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
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].input_ids))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            completions = self._complete([prompts[index] for index in batch], sampling)
            yield from zip(batch, completions, strict=True)

    def _complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """The completions of one batch."""
        batch = Batch([prompt.input_ids for prompt in prompts], self.pad_id, self.model.device)
        found: dict[int, Completion] = {}
        try:
            with as_for_generation(self.model, self._settings(1)):
                if (shared := batch.shared()) is not None:
                    batch.spread(self._generate(shared, 1).past_key_values)
                while batch.rows:
                    found |= self._go_on(batch, prompts, sampling)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the device has not enough memory to complete {len(prompts)} prompts at a time "
                f"({str(error).splitlines()[0]}); lower per_device_eval_batch_size or "
                "max_completion_length"
            ) from error
        return [found[row] for row in range(len(prompts))]

    def _go_on(
        self, batch: Batch, prompts: Sequence[Prompt], sampling: Sampling
    ) -> dict[int, Completion]:
        """Some more steps for the rows that are left; the completions of those that end with it."""
        left = [prompts[row] for row in batch.rows]
        length = batch.prompt_length
        ends = StopStrings(self.tokenizer, [prompt.stop_strings for prompt in left], length)
        made = self._generate(
            batch.inputs(),
            batch.next_steps(sampling.max_completion_length),
            logits_processor=processors(left, sampling, length, self.model.device),
            stopping_criteria=StoppingCriteriaList([ends] if ends.is_needed else []),
        )
        written = batch.extend(made.sequences, made.past_key_values)
        is_last = batch.steps >= sampling.max_completion_length
        found: dict[int, Completion] = {}
        remaining: list[int] = []
        for place, row in enumerate(batch.rows):
            ended = ends.lengths[place] is not None or not self.stop_set.isdisjoint(written[place])
            if ended or is_last:
                strings = left[place].stop_strings
                found[row] = self._finish(written[place], ends.lengths[place], strings)
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
        if length is not None and (stop is None or length <= stop):
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
    prompts: Sequence[Prompt], sampling: Sampling, prompt_length: int, device: Any
) -> LogitsProcessorList:
    """What makes of the logits of a batch the token of each row.

    Args:
        prompts: the batch.
        sampling: how tokens are chosen.
        prompt_length: tokens of the padded prompts.
        device: where the logits are.
    """
    found = LogitsProcessorList([RefuseNaN(prompt_length)])
    if sampling.temperature == 0:
        return found
    found += warpers(sampling.temperature, sampling.top_k, sampling.top_p)
    numbers_BS = uniforms([prompt.seed for prompt in prompts], sampling.max_completion_length)
    if device.type != "mps":
        numbers_BS = numbers_BS.to(device)
    found.append(SeededDraw(numbers_BS, prompt_length))
    return found


@contextmanager
def as_for_generation(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put a model into evaluation mode, with nothing of its own generation_config.json in force.

    `generate` fills every setting that is not given with the model's own, such as a repetition
    penalty, so the model's own is put aside; all of it is put back.
    """
    training = [module for module in model.modules() if module.training]
    layers = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    owners = [layer for layer in layers if "generation_config" in vars(layer)]
    settings = [owner.generation_config for owner in owners]
    model.eval()
    for owner in owners:
        owner.generation_config = config
    try:
        with torch.inference_mode():
            yield
    finally:
        for owner, setting in zip(owners, settings, strict=True):
            owner.generation_config = setting
        for module in training:
            module.training = True
