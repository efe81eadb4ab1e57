"""What makes a stage fast on a CPU: the key `fast`, bfloat16, and checkpointing only where memory asks for it."""

from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import TrainingArguments

from toolkit.models.fast.switch import compile_parts, slow_down, speed_up
from toolkit.models.precision import cpu_computes_bf16
from toolkit.recipe import StageRecipe
from toolkit.stages.disk import in_units
from toolkit.stages.processes import on_cpu
from toolkit.stages.terminal import note

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""The key, and its older name in transformers 5.23: the first wins where both are there."""
ROOM = 0.5
"""Of the free memory, what activations may take before they are computed a second time instead."""
LARGE = 10 * 10**6
"""Weights from which on rounding to bfloat16 was measured to save more than it costs."""


def is_fast(recipe: StageRecipe, device: str | None = None) -> bool:
    """Whether a stage trains an adapter on a CPU, where leaving work out was measured to win.

    Args:
        recipe: the stage's keys.
        device: what computes, such as "cpu" or "cuda"; by default what is here.
    """
    there = on_cpu() if device is None else device == "cpu"
    return bool(there and recipe.get("fast") and recipe["use_peft"])


def rounds(recipe: StageRecipe, model: Any, device: str | None = None) -> bool:
    """Whether a stage computes in bfloat16 on a CPU though no key says so, as by TRL's default.

    Args:
        recipe: the stage's keys.
        model: what is trained.
        device: as of `is_fast`.
    """
    decides = any(map(recipe.is_written, ("bf16", "fp16")))
    quantized = recipe.get("load_in_4bit") or recipe.get("load_in_8bit")
    if decides or quantized or not is_fast(recipe, device):
        return False
    return model.num_parameters() >= LARGE and cpu_computes_bf16()


def decides_checkpointing(recipe: StageRecipe) -> bool:
    """Whether a recipe says itself if activations are computed a second time."""
    return any(recipe.is_written(key) for key in CHECKPOINTING)


def asks_checkpointing(recipe: StageRecipe) -> bool:
    """What a recipe says of it, or TRL's default."""
    new, old = (recipe.get(key) for key in CHECKPOINTING)
    return bool(old if new is None else new)


def there_is_room(needed: float, free: float) -> bool:
    """Whether activations of so many bytes are kept, in so much free memory."""
    return needed <= ROOM * free


def train_fast(recipe: StageRecipe, trainer: Any) -> None:
    """Have a trainer's model leave out what cannot change its result, or say why it does not."""
    if not is_fast(recipe) or not isinstance(trainer.model, PeftModel):
        return
    base = trainer.model.get_base_model()
    reason = "continuous batching asks for transformers' own attention"
    if not getattr(trainer, "use_transformers_continuous_batching", False):
        reason = speed_up(base)
    if recipe["torch_compile"]:
        compile_parts(base)
    if reason:
        note(f"fast: padding and positions without loss are computed too, because {reason}")


def train_plain(trainer: Any) -> None:
    """Have its model compute as upstream does again, so that what is saved is compared to the bit."""
    if isinstance(trainer.model, PeftModel):
        slow_down(trainer.model.get_base_model())


def suit_cpu(recipe: StageRecipe, args: TrainingArguments, model: Any, longest: int) -> None:
    """Decide what the recipe leaves open, where a CPU computes: precision and checkpointing.

    Args:
        recipe: which wins where it says something of it.
        args: changed in place.
        model: what is trained, before the trainer has it.
        longest: tokens of the longest row.
    """
    if rounds(recipe, model):
        args.bf16, args.mixed_precision = True, "bf16"
        note("bf16: true, which this CPU multiplies faster; bf16: false computes in float32")
    if is_fast(recipe) and not decides_checkpointing(recipe):
        keep_activations(args, model, longest)


def keep_activations(args: TrainingArguments, model: Any, longest: int) -> None:
    """Turn gradient checkpointing off where the activations of a batch fit into memory."""
    needed = args.per_device_train_batch_size * longest * bytes_per_token(model)
    if there_is_room(needed, psutil.virtual_memory().available):
        for key in CHECKPOINTING:  # the Trainer reads the first, TRL's trainers the second
            setattr(args, key, False)
        note(f"gradient_checkpointing: false (not true), the {in_units(needed)} at most fit")


def bytes_per_token(model: Any) -> int:
    """What the forward pass keeps of a token for the backward pass, without checkpointing."""
    training, few, many = model.training, 16, 32
    model.train()
    try:
        kept = [kept_bytes(model, tokens) for tokens in (few, many)]
    finally:
        model.train(training)
    return (kept[1] - kept[0]) // (many - few)


def kept_bytes(model: Any, tokens: int) -> int:
    """What the forward pass keeps of so many tokens, and of the weights that it casts."""
    seen: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage.nbytes()  # preflight's tensors all lie at 0
        return tensor.detach()  # with its graph it would hold itself for ever

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    device = base.get_input_embeddings().weight.device
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        states = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
    del states
    return sum(seen.values())
