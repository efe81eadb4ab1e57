"""Attention over rows that lie one behind the other, each for itself.

What comes from a batch with padding is left to transformers' own `sdpa`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PARTS = "sdpa_parts"
"""The name by which a model's config asks for this."""


@dataclass(frozen=True)
class Part:
    """Some of the tokens that lie behind one another: a row, or what is its own of one.

    Attributes:
        size: how many tokens.
        beginning: which earlier part stands before it, if it shares its beginning with others.
    """

    size: int
    beginning: int | None = None


def parts_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    parts: Sequence[Part] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`, of which the parts see themselves and what is before.

    Args:
        module: the layer.
        query: of shape (1, heads, N, D).
        key: of shape (1, key heads, N, D).
        value: likewise.
        attention_mask: is not looked at where there are parts.
        parts: in the order of the N tokens; without them all is as upstream.
        **kwargs: transformers'; of them the scale, the dropout and the sliding window are used.

    Returns:
        The attended values, (1, N, heads, D).
    """
    if parts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    dtype = query.dtype
    if query.device.type in ("cpu", "meta"):  # the latter where preflight weighs the former
        # in bfloat16 this kernel takes two to three times as long
        query, key, value = query.float(), key.float(), value.float()
    # of `split` the backward pass is one concatenation, of slices a sum of whole tensors
    pieces = [tensor.split([part.size for part in parts], dim=2) for tensor in (query, key, value)]
    found = []
    for number, part in enumerate(parts):
        own = [tensor[number] for tensor in pieces]
        if part.beginning is not None:
            before = part.beginning
            own[1:] = [torch.cat([pieces[i][before], own[i]], dim=2) for i in (1, 2)]
        mask = seen(part.size, own[1].shape[2], kwargs.get("sliding_window"), own[0].dtype)
        with torch.autocast("cpu", enabled=False):  # which would round to bfloat16 again
            found.append(
                scaled_dot_product_attention(
                    *own,
                    attn_mask=None if mask is None else mask.to(own[0].device),
                    dropout_p=kwargs.get("dropout", 0.0),
                    is_causal=mask is None,
                    scale=kwargs.get("scaling"),
                    enable_gqa=own[0].shape[1] != own[1].shape[1],
                )
            )
    return torch.cat(found, dim=2).transpose(1, 2).to(dtype).contiguous(), None


@functools.lru_cache(maxsize=128)
def seen(queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """0 where the last `queries` of `keys` tokens look, else minus infinity; None if plainly causal."""
    if queries == keys and (window is None or keys <= window):
        return None
    looks = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if window is not None:
        looks = looks.triu(keys - queries - window + 1)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill(~looks, -torch.inf)


AttentionInterface.register(PARTS, parts_attention)
AttentionMaskInterface.register(PARTS, sdpa_mask)
