"""Weighs a step without taking it: every operation runs on tensors that have a shape and no memory.

The model, PEFT, gradient checkpointing and TRL's head are the real ones, so that what is alive at a
time is what they keep, and nothing has to be known about an architecture. Attention is what a fused
kernel keeps: torch would choose another one for tensors without memory.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from trl.kernels import chunked_logprob

FUSED = "weighed"
BLOCK = 64  # weights of NF4 and FP4 that share a scale (bitsandbytes 0.50, functional.py)


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it and are still alive.

    Attributes:
        now: bytes.
        peak: the most that there were since `forget`.
        events: since then, the number and bytes of each that was made, and again, with a negative
            number, when it was gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.events: list[tuple[int, int]] = []
        self._made = 0
        by_ref: Any = weakref.ref
        self._known: Any = WeakIdKeyDictionary(ref_type=by_ref)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return found

    def see(self, tensor: Tensor) -> None:
        """Count a tensor, unless it is a view of one that is counted."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self._made += 1
        self.events.append((self._made, size))
        weakref.finalize(storage, self._gone, self._made, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, number: int, size: int) -> None:
        self.now -= size
        self.events.append((-number, size))

    def forget(self) -> None:
        """Start a new peak from what there is now."""
        self.peak = self.now
        self.events = []


@contextmanager
def weightless(device: str) -> Iterator[Held]:
    """Inside the block tensors have no memory; gives what counts what they would have.

    Args:
        device: where they would be; it decides what TRL's head needs.
    """
    with ExitStack() as changed:
        # it knows no device without memory; TRL 1.16 (kernels/chunked_logprob.py) asks it
        changed.enter_context(swapped(torch, "is_autocast_enabled", lambda *device: False))
        changed.enter_context(swapped(torch, "autocast", lambda *a, **k: nullcontext()))
        if device == "cuda":  # there its kernels work in place
            for name in ("_forward_tile", "_backward_tile"):
                changed.enter_context(swapped(chunked_logprob, name, lambda *a, **k: None))
        changed.enter_context(torch.device("meta"))
        yield changed.enter_context(Held())


@contextmanager
def swapped(module: Any, name: str, value: Any) -> Iterator[None]:
    """Have another value under a name of a module inside the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def autocast() -> Iterator[None]:
    """Inside the block a float32 model computes as under torch's own, which has none for these tensors.

    Its matrices are rounded wherever they are used, and these copies kept for the backward pass.
    """

    def rounded(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of(*given: Any) -> Tensor:
            return product(*(each if each is None else each.to(torch.bfloat16) for each in given))

        return of

    with (
        swapped(functional, "linear", rounded(functional.linear)),
        swapped(torch, "addmm", rounded(torch.addmm)),  # of transformers' Conv1D
        swapped(torch, "is_autocast_enabled", lambda *device: True),  # which heads ask
        swapped(torch, "get_autocast_dtype", lambda *device: torch.bfloat16),
    ):
        yield


def bytes_of(weights: Any) -> int:
    """The bytes of some tensors, each storage once."""
    found = {id(s := weight.untyped_storage()): s.nbytes() for weight in weights}
    return sum(found.values())


class Quantized(nn.Linear):
    """A matrix as bitsandbytes holds it in 4 bits: unpacked for a moment, forth and back."""

    def __init__(self, linear: nn.Linear, *, nested: bool):
        super().__init__(1, 1, bias=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        size = linear.weight.numel()
        self.weight = nn.Parameter(torch.empty(size // 2, dtype=torch.uint8), requires_grad=False)
        scale = torch.uint8 if nested else torch.float32
        self.scales = torch.empty(-(-size // BLOCK), dtype=scale)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """As of nn.Linear."""
        found = Unpacked.apply(input, self.out_features)
        return found if self.bias is None else found + self.bias  # pyright: ignore


class Unpacked(torch.autograd.Function):
    """A product with a matrix that is unpacked before it, and once more for its gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, width: int) -> Tensor:
        """(…, I) to (…, width)."""
        ctx.shape = (width, rows.shape[-1])
        return rows @ rows.new_empty(ctx.shape).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of the rows; the matrix has none."""
        return gradients[0] @ gradients[0].new_empty(ctx.shape), None


def quantize(model: nn.Module, *, nested: bool, skipped: Callable[[str], bool]) -> None:
    """Put every matrix of a model into 4 bits, as loading it with `load_in_4bit` does.

    Args:
        model: changed in place.
        nested: whether the scales are quantized too.
        skipped: tells by name what stays as it is.
    """
    for name, module in list(model.named_modules()):
        for key, child in module.named_children():
            whole = f"{name}.{key}" if name else key
            if type(child) is nn.Linear and not skipped(whole):
                setattr(module, key, Quantized(child, nested=nested))


class Attended(torch.autograd.Function):
    """What a fused kernel keeps: its inputs, its output, and a float32 for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, T, width) of all three, and a mask (B, 1, T, T)."""
        found = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, found, sums, mask)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of query, key and value."""
        return (*(torch.empty_like(each) for each in ctx.saved_tensors[:3]), None)


def attended(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward` with a mask of padding."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    mask = None
    if isinstance(attention_mask, Tensor):
        # torch makes numbers of a mask of bools before any kernel sees it
        mask = torch.empty(attention_mask.shape, dtype=query.dtype)
    found: Any = Attended.apply(query, key, value, mask)
    return found.transpose(1, 2).contiguous(), None


def masked(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor:
    """The mask of a batch whose rows differ in length, of shape (B, 1, T, T)."""
    return torch.empty(batch_size, 1, q_length, kv_length, dtype=torch.bool)


AttentionInterface.register(FUSED, attended)
AttentionMaskInterface.register(FUSED, masked)
