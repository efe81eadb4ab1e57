"""Puts the fast parts into a model that PEFT and TRL have made ready for training.

TRL's private names were read in TRL 1.16, trl/trainer/utils.py (`add_fused_lm_head`).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.trainer import utils as trl_utils

from toolkit.models.fast.attention import PARTS, seen
from toolkit.models.fast.head import LabelLogProbs
from toolkit.models.fast.lora import add_in_place
from toolkit.models.fast.packing import pack, rows_of
from toolkit.models.fast.replaced import bring_back, replace

LAYERS = {"full_attention", "sliding_attention"}
CLOSE = 1e-3
"""How far the packed hidden states may be from the padded ones, as a share of the largest.

Of a base in half precision it is more, by the root of how much coarser its numbers are.
"""
# what a causal model is called with while it is trained on text
KNOWN = {
    "input_ids", "attention_mask", "position_ids", "use_cache", "cu_seq_lens_q", "cu_seq_lens_k",
    "max_length_q", "max_length_k",
}  # fmt: skip


def speed_up(base: Any) -> str | None:
    """Have a model compute neither padding nor positions without loss, and add LoRA's updates in place.

    Args:
        base: of transformers, with or without LoRA layers, and with TRL's fused head where it is
            scored by labels. It is tried on three short rows; what does not give the same stays as
            it was.

    Returns:
        Why it stays as it was, if it does.
    """
    config = base.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if config._attn_implementation != "sdpa" or others:
        return f"its attention is {', '.join(sorted(others)) or config._attn_implementation}"
    backbone = base.base_model
    upstream = backbone.forward
    base.set_attn_implementation(PARTS)
    replace(backbone, packed_forward(upstream))
    if not agree(backbone, upstream):
        bring_back(backbone)
        base.set_attn_implementation("sdpa")
        return "without padding it gave other numbers"
    replace(base, labelled_forward(base, base.forward))
    add_in_place(base)
    return None


def slow_down(base: Any) -> None:
    """Have a model compute its batches as upstream does again, to the bit."""
    if base.config._attn_implementation == PARTS:
        base.set_attn_implementation("sdpa")
    for module in base.modules():
        bring_back(module)
        module._compiled_call_impl = None
    seen.cache_clear()


def compile_parts(base: Any) -> None:
    """Compile what a layer has beside its attention, whose parts are other ones in every batch."""
    for layer in base.base_model.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # as transformers' own all are
            for name, child in layer.named_children():
                if "attn" not in name:
                    child.compile(dynamic=True)


def packed_forward(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """A backbone's forward pass, without padding where that is possible."""

    @functools.wraps(upstream)
    def forward(input_ids: Any = None, **kwargs: Any) -> Any:
        given = {key for key, value in kwargs.items() if value is not None and value is not False}
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        cached = kwargs.get("use_cache") is not False
        if input_ids is None or cached or given - KNOWN or getattr(mask, "ndim", 2) != 2:
            return upstream(input_ids=input_ids, **kwargs)
        rows = rows_of(input_ids, mask, positions)
        if rows is None:
            return upstream(input_ids=input_ids, **kwargs)
        packed = pack(rows, input_ids.numel())
        seen.cache_clear()  # the masks of another batch, as large as its longest rows squared
        where = input_ids.device
        said = upstream(
            input_ids=input_ids.flatten()[packed.slots.to(where)][None],
            position_ids=packed.positions.to(where)[None],
            # of four dimensions, so that transformers makes none
            attention_mask=torch.empty(1, 1, 1, 1, device=where),
            use_cache=False,
            parts=packed.parts,
        )
        states = said.last_hidden_state[0].index_select(0, packed.places.to(where))
        said.last_hidden_state = states.view(*input_ids.shape, -1)
        return said

    return forward


@torch.no_grad()
def agree(backbone: Any, upstream: Callable[..., Any]) -> bool:
    """Whether rows with padding on either side have the same hidden states, packed and not."""
    training = backbone.training
    backbone.eval()
    device = backbone.get_input_embeddings().weight.device
    vocabulary = backbone.config.get_text_config().vocab_size
    ids = (torch.arange(48, device=device).view(3, 16) * 7 + 3) % vocabulary
    ids[1, :12] = ids[0, :12]  # a shared beginning
    mask = torch.ones_like(ids)
    mask[1, 14:] = 0
    mask[2, :5] = 0
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    try:
        ours, theirs = (
            run(**given).last_hidden_state[mask.bool()].float()
            for run in (backbone.forward, upstream)
        )
    except (TypeError, ValueError, RuntimeError):  # it takes no parts, or cannot attend so
        return False
    finally:
        backbone.train(training)
    coarse = torch.finfo(backbone.dtype).eps / torch.finfo(torch.float32).eps
    return bool((ours - theirs).abs().max() <= CLOSE * coarse**0.5 * theirs.abs().max())


def labelled_forward(base: Any, upstream: Callable[..., Any]) -> Callable[..., Any]:
    """A model's forward pass, in which TRL's fused head scores labelled positions alone."""

    @functools.wraps(upstream)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return upstream(*args, **kwargs)
        with labelled_only(base):
            return upstream(*args, **kwargs)

    return forward


@contextmanager
def labelled_only(base: Any) -> Iterator[None]:
    """Inside the block TRL's head leaves out positions without a label, and takes our function.

    It does the first by itself on devices that have Triton.
    """
    former = trl_utils._use_triton, trl_utils._ChunkedLogProbFunction
    trl_utils._use_triton = lambda device: True
    trl_utils._ChunkedLogProbFunction = OfHead(base, former[1])
    try:
        yield
    finally:
        trl_utils._use_triton, trl_utils._ChunkedLogProbFunction = former


class OfHead:
    """Stands where TRL has its ChunkedLogProbFunction."""

    def __init__(self, base: Any, upstream: Any):
        self.base, self.upstream = base, upstream

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        logit_scale: float,
        outputs: tuple[str, ...],
    ) -> Any:
        """As TRL's; a head that is trained whole, or has a bias, is left to it."""
        rows, index = trained_rows(self.base) if weight.requires_grad else (None, None)
        if bias is not None or (weight.requires_grad and rows is None):
            return self.upstream.apply(
                hidden,
                weight,
                bias,
                targets,
                temperature,
                chunk_size,
                softcap,
                logit_scale,
                outputs,
            )
        return LabelLogProbs.apply(
            hidden,
            weight.detach(),
            rows,
            index,
            targets,
            temperature,
            softcap,
            logit_scale,
            outputs,
        )


def trained_rows(base: Any) -> tuple[Tensor | None, Tensor | None]:
    """The rows of the head that the active adapter trains, (R, H), and which they are, (R,)."""
    head = base.get_output_embeddings()
    if not isinstance(head, TrainableTokensWrapper):
        return None, None
    layer = head.token_adapter
    active = [name for name in layer.active_adapters if name in layer.trainable_tokens_delta]
    if len(active) != 1 or layer.merged:
        return None, None
    rows = layer.trainable_tokens_delta[active[0]]
    if hasattr(rows, "to_local"):  # FSDP2 has them in parts
        return None, None
    return rows, torch.tensor(layer.token_indices[active[0]], device=rows.device)
