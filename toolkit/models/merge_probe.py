"""What base and adapter give before they are merged, and how far the merged model may be from it."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.errors import TrainingError

# of the largest logit, or of 1 where all are smaller; see `compare`
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PROBE_TOKENS = 48
PROBE_CHAT = [
    {"role": "user", "content": "What is 6 times 7, and why?"},
    {"role": "assistant", "content": "42, because 6 + 6 + 6 + 6 + 6 + 6 + 6 = 42."},
]


@dataclass(frozen=True)
class Probe:
    """What base and adapter give before they are merged.

    Attributes:
        sequences: token ids.
        logits: of each sequence, float32: of every position (T, V), or a classifier's (1, C).
        effect: root mean square of what the adapter changes in the base's logits.
    """

    sequences: list[list[int]]
    logits: list[Tensor]
    effect: float


@dataclass(frozen=True)
class Compared:
    """How far the merged model, loaded again from disk, is from base and adapter.

    Attributes:
        largest_difference: of any logit.
        largest_logit: the scale of the tolerance.
        tolerance: what was allowed; see `compare`.
        difference: root mean square over all logits.
        effect: of the adapter, likewise.
    """

    largest_difference: float
    largest_logit: float
    tolerance: float
    difference: float
    effect: float


@torch.no_grad()
def logits_of(model: Any, sequences: list[list[int]]) -> list[Tensor]:
    """The logits of each sequence, computed alone; float32, (T, V) or a classifier's (1, C)."""
    return [
        model(input_ids=torch.tensor([ids]), use_cache=False).logits.float().flatten(0, -2)
        for ids in sequences
    ]


def probe_ids(model: PeftModel, words: PreTrainedTokenizerBase) -> list[list[int]]:
    """Sequences that touch all of a model: a chat, every added token, ids from the whole vocabulary."""
    rows: int = model.get_input_embeddings().weight.shape[0]  # pyright: ignore
    size = min(rows, len(words))
    sequences = [list(range(0, size, max(1, size // PROBE_TOKENS)))[:PROBE_TOKENS]]
    if words.chat_template is not None:
        told: Any = words.apply_chat_template(PROBE_CHAT, tokenize=True, return_dict=True)
        sequences.append(told["input_ids"][:PROBE_TOKENS])
    sequences.append(sorted({*trained_rows(model), *words.added_tokens_decoder})[-PROBE_TOKENS:])
    # a classifier of transformers reads the last token that is no padding
    padding = words.pad_token_id
    usable = [[i for i in ids if i != padding and i < rows] for ids in sequences]
    return [ids for ids in usable if len(ids) > 1]


def trained_rows(model: PeftModel) -> set[int]:
    """Every token whose own row an adapter trains."""
    wrappers = [m for m in model.modules() if isinstance(m, TrainableTokensWrapper)]
    return {
        int(i)
        for wrapper in wrappers
        for ids in wrapper.token_adapter.token_indices.values()
        for i in ids
    }


@torch.no_grad()
def probe(model: PeftModel, words: PreTrainedTokenizerBase) -> Probe:
    """What base and adapter give, and how much of it the adapter does.

    Raises:
        TrainingError: if the adapter changes nothing.
    """
    sequences = probe_ids(model, words)
    effect = effect_of(model, sequences[0])
    if effect == 0:
        raise TrainingError(
            "the adapter changes no logit of its base: nothing is trained in it, and the merged "
            "model would be the base itself"
        )
    return Probe(sequences, logits_of(model, sequences), effect)


def effect_of(model: PeftModel, ids: list[int]) -> float:
    """Root mean square of what an adapter changes in the logits of its base.

    Without the tokens whose rows it trains, if LoRA is there too: to the base those are noise, so
    anything would count as an effect.
    """
    rows = trained_rows(model) if any("lora_" in name for name in model.state_dict()) else set()
    known = [[i for i in ids if i not in rows]]
    some = logits_of(model, known)
    with model.disable_adapter():
        others = logits_of(model, known)
    width = some[0].shape[-1]
    vocabulary: int = model.get_input_embeddings().weight.shape[0]  # pyright: ignore
    kept = torch.tensor([i for i in range(width) if width != vocabulary or i not in rows])
    return root_mean_square([some[0][:, kept]], [others[0][:, kept]])


def root_mean_square(some: list[Tensor], others: list[Tensor]) -> float:
    """Of the difference, over all logits; NaN if one of them is no number."""
    squares = [(a - b).double().square() for a, b in zip(some, others, strict=True)]
    count = sum(square.numel() for square in squares)
    return float(sum(square.sum() for square in squares)) ** 0.5 / count**0.5


def compare(probe: Probe, logits: list[Tensor], dtype: torch.dtype) -> Compared:
    """Compare what came back from disk with base and adapter.

    The tolerance grows with the largest logit, since floating-point numbers round in proportion.

    Args:
        probe: of base and adapter.
        logits: of the merged model.
        dtype: of its weights.

    Raises:
        TrainingError: if they differ by more than the tolerance, or the merged model is no nearer to
            base and adapter than the base alone is.
    """
    pairs = list(zip(probe.logits, logits, strict=True))
    # to torch a NaN is the largest of all; Python's max may pass it over
    largest = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())
    scale = max(1.0, *(float(a.abs().max()) for a in probe.logits))
    found = Compared(
        largest_difference=largest,
        largest_logit=scale,
        tolerance=TOLERANCE[dtype] * scale,
        difference=root_mean_square(probe.logits, logits),
        effect=probe.effect,
    )
    if not largest <= found.tolerance:
        raise TrainingError(
            f"the merged model does not give the logits of base and adapter: they differ by "
            f"{largest:.2g}, allowed {found.tolerance:.1g} in {str(dtype).removeprefix('torch.')}"
        )
    if not found.difference < found.effect:
        raise TrainingError(
            f"rounding to {str(dtype).removeprefix('torch.')} changes the logits by "
            f"{found.difference:.2g} and the adapter by only {found.effect:.2g} (root mean square), "
            "so what was trained is lost; merge with --dtype float32"
        )
    return found
