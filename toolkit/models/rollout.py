"""Sampling for learning: equal prompts are read once, and who has ended makes no more steps.

transformers' `generate` reads every copy of a prompt, and computes for rows that have ended until
the last one has. This is another loop for it, as its `custom_generate`: settings, processors and
stopping are transformers' own, greedy ids are the same, and sampled ones are other draws from the
same distribution. Names with an underscore were read in transformers 5.23, generation/utils.py.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from toolkit.models.cache import with_room

Ended = Callable[[dict[int, list[int]]], None]
"""Told of the rows that ended before the last one did: their completions, as token ids."""

DROP = 0.25
"""Share of the rows in work that have ended, from which the others go on alone."""

MODES = (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
TEXT = {"input_ids", "attention_mask", "generation_config"}
KNOWN = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
LENGTHS = "prompt_ignore_length"
# What looks at each row by itself: of a batch with fewer rows it says the same of those.
BY_ROW = (
    processors.TemperatureLogitsWarper, processors.TopKLogitsWarper, processors.TopPLogitsWarper,
    processors.MinPLogitsWarper, processors.TypicalLogitsWarper, processors.EpsilonLogitsWarper,
    processors.EtaLogitsWarper, processors.RepetitionPenaltyLogitsProcessor,
    processors.NoRepeatNGramLogitsProcessor, processors.SuppressTokensLogitsProcessor,
    processors.MinLengthLogitsProcessor, processors.MinNewTokensLengthLogitsProcessor,
    criteria.MaxLengthCriteria, criteria.MaxTimeCriteria, criteria.EosTokenCriteria,
)  # fmt: skip


def fast_generation(generate: Callable[..., Any], ended: Ended | None = None) -> Callable[..., Any]:
    """A model's `generate` with the loop below where it holds, and as it was elsewhere.

    Args:
        generate: bound to a model of transformers.
        ended: told of rows while others are still sampled.
    """
    model: Any = generate.__self__  # type: ignore[attr-defined]

    @functools.wraps(generate)
    def fast(*args: Any, **kwargs: Any) -> Any:
        if args or not holds(model, kwargs):
            return generate(*args, **kwargs)
        return generate(**kwargs, custom_generate=functools.partial(decode, ended=ended))

    return fast


def holds(model: Any, given: Mapping[str, Any]) -> bool:
    """Whether the loop is for what `generate` is given: text, one plain search, and ids back."""
    settings = {key: value for key, value in given.items() if key not in TEXT}
    if "input_ids" not in given or not all(
        hasattr(model.generation_config, key) for key in settings
    ):
        return False
    if model.device.type != "cpu" or model.config.is_encoder_decoder:
        return False
    if is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model):
        return False  # every process has to make every step
    config = model._prepare_generation_config(given.get("generation_config"), **settings)[0]
    return (
        config.get_generation_mode() in MODES
        and config.use_cache
        and config.cache_implementation in (None, "dynamic")
        and not (config.return_dict_in_generate or config.stop_strings or config.token_healing)
        and config.prefill_chunk_size is None
    )


@torch.no_grad()
def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    ended: Ended | None = None,
    **inputs: Any,
) -> Tensor:
    """The prompts with their completions, (B, L + longest), as transformers' `_sample` gives them.

    Args:
        model: a causal one.
        input_ids: prompts, padded on the left; (B, L).
        logits_processor: as `generate` has prepared it.
        stopping_criteria: likewise.
        generation_config: likewise.
        ended: told of rows while others are still sampled.
        **inputs: what else the model is given.
    """
    if not _is_plain(input_ids, inputs, [*logits_processor, *stopping_criteria]):
        return model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, **inputs
        )
    start, ids, pad = input_ids.shape[1], input_ids, generation_config._pad_token_tensor  # type: ignore[attr-defined]
    logits, inputs = _read_once(model, ids, generation_config, inputs)
    rows = torch.arange(len(ids))  # those in work, by their place in the batch
    done = torch.zeros(len(ids), dtype=torch.bool)
    made: dict[int, Tensor] = {}
    while True:
        scores = logits_processor(ids, logits)
        tokens = draw(scores) if generation_config.do_sample else scores.argmax(dim=-1)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        before, done = done, done | stopping_criteria(ids, None)
        if done.all():
            break
        new = (done & ~before).nonzero()[:, 0].tolist()
        made |= {int(rows[at]): ids[at] for at in new}
        if ended and new:
            ended({int(rows[at]): ids[at, start:].tolist() for at in new})
        if done.sum() >= DROP * len(done):
            rows, ids, inputs = rows[~done], ids[~done], _chosen(inputs, (~done).nonzero()[:, 0])
            done = done[~done]
        step = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **inputs)
        outputs = model(**step, return_dict=True)
        inputs = model._update_model_kwargs_for_generation(outputs, inputs)
        logits = outputs.logits[:, -1].float()
    made |= {int(row): ids[at] for at, row in enumerate(rows) if int(row) not in made}
    found = ids.new_full((len(made), ids.shape[1]), 0 if pad is None else int(pad))
    for row, each in made.items():
        found[row, : len(each)] = each
    return found


def draw(scores: Tensor) -> Tensor:
    """A token for each row, with the probabilities that its scores stand for, (B, V) -> (B).

    `torch.multinomial` takes a random number for every entry of the vocabulary, on a CPU a tenth of
    a step of a small model; here one for each row falls into the sum of the probabilities.

    Raises:
        RuntimeError: if a score is no number.
    """
    sums = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    if not total.isfinite().all():
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
    at = torch.rand(len(sums), 1, dtype=torch.float64) * total
    # never one of probability 0
    return torch.searchsorted(sums, at, right=True).squeeze(1).clamp(max=sums.shape[1] - 1)


def _is_plain(ids: Tensor, inputs: Mapping[str, Any], looks: list[Any]) -> bool:
    """Whether rows can be read once and dropped: the cache keeps them apart, and nothing counts them."""
    cache = inputs.get("past_key_values")
    return (
        isinstance(cache, DynamicCache)
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and inputs.keys() <= KNOWN
        and all(each.shape == ids.shape for each in inputs.values() if isinstance(each, Tensor))
        and all(type(each) in BY_ROW for each in looks)
        # of prompts that are padded, the penalty on repetition holds the length of each
        and not any(isinstance(getattr(each, LENGTHS, None), Tensor) for each in looks)
    )


def _read_once(
    model: Any, ids: Tensor, config: GenerationConfig, inputs: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """The logits behind each prompt, (B, V), and what the model goes on with."""
    mask = inputs.get("attention_mask")
    marked = ids if mask is None else torch.cat([ids, mask.to(ids.dtype)], dim=1)
    _, same = marked.unique(dim=0, return_inverse=True)
    first = torch.stack([(same == number).nonzero()[0, 0] for number in range(int(same.max()) + 1)])
    own = {k: v[first] if isinstance(v, Tensor) else v for k, v in inputs.items()}
    outputs = model._prefill(ids[first], config, own)
    cache = with_room(outputs.past_key_values)
    inputs = model._update_model_kwargs_for_generation(outputs, inputs)
    cache.batch_select_indices(same)
    return outputs.logits[:, -1].float()[same], inputs | {"past_key_values": cache}


def _chosen(inputs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """What the model goes on with for some of the rows."""
    inputs["past_key_values"].batch_select_indices(rows)
    return {k: v[rows] if isinstance(v, Tensor) else v for k, v in inputs.items()}
