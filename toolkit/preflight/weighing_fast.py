"""A CPU's fast path (`toolkit.models.fast`), weighed: its own attention and head, told what they look up.

Which rows share a beginning and which positions have a label are questions to the data, and tensors
without memory have none.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from trl.trainer.utils import FusedCausalLMOutput

from toolkit.models.fast import attention, head
from toolkit.models.fast.attention import Part
from toolkit.models.fast.head import LabelLogProbs
from toolkit.models.fast.packing import SHARED
from toolkit.preflight.weighing import Attended, attended, masked, swapped

PARTS = "weighed_parts"
STRIP = 2**21  # logits that the head works on at a time: an eighth of the steps, and a few MB more


@contextmanager
def weightless_parts() -> Iterator[None]:
    """Inside the block the fast path's attention keeps what its kernel keeps on a CPU."""
    fresh = functools.lru_cache(attention.seen.__wrapped__)  # no mask without memory is to stay
    with (
        swapped(attention, "scaled_dot_product_attention", of_a_part),
        swapped(attention, "seen", fresh),
        swapped(head, "STRIP", STRIP),
    ):
        yield


def of_a_part(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """As torch's scaled_dot_product_attention; a CPU's kernel needs no copies for shared keys."""
    found: Any = Attended.apply(query, key, value, attn_mask)
    return found


def attended_parts(*given: Any, parts: Sequence[Part] | None = None, **kwargs: Any) -> Any:
    """The fast path's attention of parts; without them a fused kernel's."""
    if parts is None:
        return attended(*given, **kwargs)
    return attention.parts_attention(*given, parts=parts, **kwargs)


AttentionInterface.register(PARTS, attended_parts)
AttentionMaskInterface.register(PARTS, masked)


def parts_of(rows: int, length: int, completion: int, prompts: int) -> list[Part]:
    """How the tokens of a batch belong together.

    Args:
        rows: sequences.
        length: tokens of each.
        completion: those behind its prompt; 0 if it has none.
        prompts: how many different prompts there are; 0 if none is shared.
    """
    prompt = length - completion
    if not (completion and 0 < prompts < rows) or prompt < SHARED:
        return [Part(length)] * rows
    found: list[Part] = []
    for number in range(prompts):
        members = rows // prompts + (number < rows % prompts)
        if members == 1:
            found.append(Part(length))
            continue
        found += [Part(prompt), *[Part(completion, len(found))] * members]
    return found


def packed(upstream: Callable[..., Any], parts: Sequence[Part] | None = None) -> Callable[..., Any]:
    """A backbone's forward pass as `toolkit.models.fast.switch` has it.

    Args:
        upstream: the backbone's own.
        parts: of every batch, whatever it is; by default each row is one.
    """

    @functools.wraps(upstream)
    def forward(input_ids: Any = None, **kwargs: Any) -> Any:
        if kwargs.get("use_cache") is not False:
            return upstream(input_ids=input_ids, **kwargs)
        rows, length = input_ids.shape
        own = parts or [Part(length)] * rows
        tokens = torch.zeros(1, sum(part.size for part in own), dtype=torch.long)
        said = upstream(
            input_ids=tokens,
            position_ids=tokens,
            attention_mask=torch.empty(1, 1, 1, 1),
            use_cache=False,
            parts=own,
        )
        places = torch.zeros(input_ids.numel(), dtype=torch.long)
        states = said.last_hidden_state[0].index_select(0, places)
        said.last_hidden_state = states.view(rows, length, -1)
        return said

    return forward


def add_labelled_head(model: Any, scored: int, outputs: Sequence[str]) -> None:
    """As TRL's `add_fused_lm_head`, of the fast path.

    Args:
        model: changed in place.
        scored: positions of a batch that have a label.
        outputs: what is measured of each beside its log-probability.
    """
    upstream: Callable[..., Any] = model.forward

    @functools.wraps(type(model).forward)
    def forward(*given: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return upstream(*given, **kwargs)
        states = model.base_model(*given, use_cache=False, **kwargs).last_hidden_state[:, :-1]
        where = torch.zeros(2, scored, dtype=torch.long)
        said: Any = LabelLogProbs.apply(
            states[where[0], where[1]], model.get_output_embeddings().weight.detach(), None, None,
            torch.zeros(scored, dtype=torch.long), 1.0, None, 1.0, outputs,
        )  # fmt: skip
        return FusedCausalLMOutput(log_probs=said[0])

    model.forward = forward
