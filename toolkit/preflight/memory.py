"""How much memory a stage needs on one device, part by part."""

import copy
import gc
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights
from trl.trainer.utils import add_fused_lm_head

from toolkit.models import adapters, reward
from toolkit.models.chatml import TokenizerChange
from toolkit.models.fast.lora import add_in_place
from toolkit.models.fast.switch import LAYERS
from toolkit.models.heads import add_scalar_heads
from toolkit.models.switching import checkpoint_through
from toolkit.models.value import VALUE, add_value_adapter
from toolkit.preflight.asked import Asked, Need
from toolkit.preflight.heap import resident
from toolkit.preflight.weighing import (
    FUSED,
    Held,
    Quantized,
    autocast,
    bytes_of,
    quantize,
    swapped,
    weightless,
)
from toolkit.preflight.weighing_fast import (
    PARTS,
    add_labelled_head,
    packed,
    parts_of,
    weightless_parts,
)
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import ADAPTER
from toolkit.stages.fast_path import (
    asks_checkpointing,
    bytes_per_token,
    decides_checkpointing,
    is_fast,
    rounds,
    there_is_room,
)

# Bytes of an optimizer's state per trained weight; what is not here keeps two moments in float32.
STATE = {"8bit": 2, "sgd": 0, "adafactor": 0, "rmsprop": 4, "adagrad": 4, "lion": 4, "8bit_lion": 1}
ADAM = 8
SAMPLING = 5  # tensors of (completions, vocabulary) in float32 while a token is drawn
# What TRL 1.16's head measures of each token beside its probability, by its trainers
MEASURED = {
    "sft": ("entropy", "is_top1"), "dpo": ("entropy", "mean_logits", "is_top1"),
    "grpo": ("entropy",), "ppo": ("entropy",),
}  # fmt: skip
ROLLOUTS = ("grpo", "ppo")
PAIRS = ("reward", "dpo")


def need(
    recipe: StageRecipe,
    config: Any,
    asked: Asked,
    *,
    device: str,
    runtime: int = 0,
    memory: float = 0,
) -> Need:
    """What a stage needs.

    Args:
        recipe: the stage's keys.
        config: the base's, of transformers.
        asked: how much goes through the model at once.
        device: "cpu", "cuda" or "mps".
        runtime: bytes that are there before anything is loaded.
        memory: bytes that the device has, by which the fast path of a CPU decides on checkpointing;
            0 if that is as the recipe says.
    """
    with weightless(device) as held, weightless_parts():
        return weigh(recipe, config, asked, device, held, runtime, memory)


def weigh(
    recipe: StageRecipe,
    config: Any,
    asked: Asked,
    device: str,
    held: Held,
    runtime: int,
    memory: float,
) -> Need:
    """As `need`, inside `weightless`."""
    packs = is_packed(recipe, config, device)
    model = base_of(recipe, config, device)
    gc.collect()
    base = held.now
    files = float_bytes(model, config) if device == "cpu" else 0
    rows = (2 if recipe.stage in PAIRS else 1) * asked.rows
    if recipe.stage in MEASURED and packs:
        scored = asked.rows * asked.scored or rows * (asked.length - 1)
        add_labelled_head(model, scored, MEASURED[recipe.stage])
    elif recipe.stage in MEASURED:
        add_fused_lm_head(model, outputs=("log_probs", *MEASURED[recipe.stage]))
    trained, frozen = with_adapters(recipe, model)
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    gradients = bytes_of(weights)
    found = Need(
        base=base,
        adapters=held.now - base + frozen,
        gradients=gradients,
        optimizer=gradients // 4 * state_bytes(str(recipe["optim"])),
        files=files,
        runtime=runtime,
        checkpointed=asks_checkpointing(recipe),
        rounded=rounds(recipe, trained, device),
    )
    if is_fast(recipe, device):
        found = replace(found, checkpointed=checkpoints(recipe, trained, asked, found, memory))
    if packs:
        prompts = asked.rows if recipe.stage in PAIRS else asked.prompts
        parts = parts_of(rows, asked.length, asked.completion, prompts)
        backbone: Any = trained.get_base_model().base_model
        backbone.forward = packed(backbone.forward, parts)
    is_mixed = found.rounded or mixed(recipe, device)
    copies = merged(recipe, trained, device, is_mixed) if recipe.stage in ROLLOUTS else 0
    in_float32 = {weight.dtype for weight in trained.parameters()} == {torch.float32}
    if is_mixed:
        trained.to(torch.bfloat16)  # what goes through it; the weights were counted as they are
    if recipe.stage in ROLLOUTS:
        found = sampled(recipe, trained, asked, held, found, copies)
    if is_mixed and in_float32:
        trained.float()
    if packs:
        add_in_place(trained)  # not before: what samples has the adapter inside its copies
    for weight in weights:  # of the batches before, with accumulation
        weight.grad = torch.zeros_like(weight)
    del weights
    with autocast() if is_mixed and in_float32 else nullcontext():
        return stepped(recipe, trained, asked, device, held, found)


def is_packed(recipe: StageRecipe, config: Any, device: str) -> bool:
    """Whether a batch is computed without padding, as far as base and keys tell."""
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ())
    of_sdpa = recipe.get("attn_implementation") in (None, "sdpa")
    return is_fast(recipe, device) and of_sdpa and layers <= LAYERS


def checkpoints(recipe: StageRecipe, model: Any, asked: Asked, found: Need, memory: float) -> bool:
    """Whether the fast path has activations computed a second time, as `keep_activations` decides."""
    if decides_checkpointing(recipe) or not memory:
        return found.checkpointed
    rows = (2 if recipe.stage in PAIRS else 1) * asked.rows
    there = found.base + found.adapters + found.files + found.runtime
    backbone: Any = model.get_base_model().base_model
    with swapped(backbone, "forward", packed(backbone.forward)):
        needed = rows * asked.length * bytes_per_token(model)
    return not there_is_room(needed, memory - there)


def base_of(recipe: StageRecipe, config: Any, device: str) -> Any:
    """The model as it is loaded, in its precision."""
    is_judge = recipe.stage == "reward"
    kind: Any = AutoModelForSequenceClassification if is_judge else AutoModelForCausalLM
    config = copy.deepcopy(config)
    if is_judge:
        config.num_labels = 1
        config.get_text_config().pad_token_id = 0
    with no_init_weights():
        dtype = dtype_of(recipe, config, device)
        kernel = PARTS if is_packed(recipe, config, device) else FUSED
        model = kind.from_config(config, dtype=dtype, attn_implementation=kernel)
    model.tie_weights()
    if recipe.get("load_in_4bit"):
        nested = bool(recipe.get("use_bnb_nested_quant"))
        head = {"lm_head", "score"}
        quantize(model, nested=nested, skipped=lambda name: name.rpartition(".")[2] in head)
    return model


def dtype_of(recipe: StageRecipe, config: Any, device: str) -> torch.dtype:
    """The precision that the base is loaded in; a CPU takes float32 for float16."""
    asked = recipe.get("dtype")
    if asked in (None, "auto"):
        found = getattr(config, "dtype", None) or torch.float32 if asked else torch.float32
        found = getattr(torch, found) if isinstance(found, str) else found
        return torch.float32 if device == "cpu" and found is torch.float16 else found
    return getattr(torch, str(asked).removeprefix("torch."))


def with_adapters(recipe: StageRecipe, model: Any) -> tuple[Any, int]:
    """What is trained, and the bytes of adapters that are there besides and not built here."""
    if recipe.stage == "pretrain" or not recipe["use_peft"]:
        return model, 0
    if recipe.stage == "reward":
        return reward.attach(model, recipe, TokenizerChange()), 0
    trained: Any = adapters.attach(model, recipe, TokenizerChange())
    own = bytes_of(weight for weight in trained.parameters() if weight.requires_grad)
    compared = recipe.stage in ROLLOUTS and recipe["beta"]
    copies = int(bool(compared or (recipe.stage == "dpo")))
    judges = [r for r in recipe.get("reward_funcs") or () if str(r).startswith(ADAPTER)]
    if recipe.stage == "ppo":
        policy = [weight for weight in trained.parameters() if weight.requires_grad]
        trained.requires_grad_(False)
        add_scalar_heads(trained)
        add_value_adapter(trained)
        checkpoint_through(trained)
        for weight in policy:
            weight.requires_grad_(True)
        for name, weight in trained.named_parameters():
            if f".{VALUE}." in name or f"scalar_heads.{VALUE}" in name:
                weight.requires_grad_(True)
    return trained, own * (copies + len(judges))


def state_bytes(optimizer: str) -> int:
    """What an optimizer remembers of each weight, in bytes."""
    if "paged" in optimizer:
        return 0  # it is on the CPU where the device has no room
    return next((size for word, size in STATE.items() if word in optimizer), ADAM)


def stepped(
    recipe: StageRecipe, model: Any, asked: Asked, device: str, held: Held, found: Need
) -> Need:
    """With what one batch needs, forth and back."""
    model.train()
    if found.checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        model.enable_input_require_grads()
    before: list[int] = []
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = base.base_model.register_forward_hook(lambda *_: before.append(held.now))
    start = held.now
    held.forget()
    rows = 2 * asked.rows if recipe.stage in PAIRS else asked.rows
    ids = torch.zeros(rows, asked.length, dtype=torch.long)
    loss = loss_of(recipe, model, ids)
    forth = held.peak
    loss.backward()
    hook.remove()
    # the critic's pass is kept too, a reference's is not
    after = before[-1] if recipe.stage == "ppo" else before[0]
    heap = resident(held.events) - (held.peak - start) if device == "cpu" else 0
    return replace(
        found,
        activations=after - start,
        logits=max(0, forth - after),
        working=max(0, held.peak - max(forth, after)),
        heap=max(0, heap),
    )


def float_bytes(model: Any, config: Any) -> int:
    """What the matrices that are held in 4 bits take in their file."""
    dtype = getattr(config, "dtype", None) or torch.float32
    size = (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize
    packed = (each for each in model.modules() if isinstance(each, Quantized))
    return sum(each.in_features * each.out_features for each in packed) * size


def mixed(recipe: StageRecipe, device: str) -> bool:
    """Whether the keys have the stage's trainer compute in bfloat16, whatever the weights are held in."""
    return bool(recipe["bf16"] if recipe.is_written("bf16") else device != "cpu")


def loss_of(recipe: StageRecipe, model: Any, ids: Tensor) -> Tensor:
    """A number of the same graph as the stage's loss."""
    mask = torch.ones_like(ids)
    if recipe.stage == "reward":
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().sum()
    if recipe.stage == "pretrain":
        return model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
    given = {"input_ids": ids, "attention_mask": mask, "labels": ids, "fused_lm_head": True}
    if recipe.stage == "ppo":
        given["scalar_head"] = VALUE
    said = model(**given)
    if recipe.stage == "dpo" and isinstance(model, PeftModel):
        with torch.no_grad(), model.disable_adapter():
            model(**given)
    total = said.log_probs.sum()
    return total + said.scalars.sum() if recipe.stage == "ppo" else total


def sampled(
    recipe: StageRecipe, model: Any, asked: Asked, held: Held, found: Need, copies: int
) -> Need:
    """With what a rollout needs while it is sampled, and the bytes of the copies that hold the policy."""
    if recipe["use_vllm"]:
        return found
    model.eval()
    held.forget()
    ids = torch.zeros(asked.sampled, asked.prompt, dtype=torch.long)
    with torch.no_grad():
        mask = torch.ones_like(ids)
        said = model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
    first = held.peak - held.now
    vocabulary = said.logits.shape[-1]
    cached = bytes_of(
        t for layer in said.past_key_values.layers for t in (layer.keys, layer.values)
    )
    cache = cached * (asked.prompt + asked.completion) // asked.prompt
    sampling = max(SAMPLING * 4 * vocabulary * asked.sampled, first)
    return replace(found, cache=cache, sampling=sampling + copies)


def merged(recipe: StageRecipe, model: Any, device: str, is_mixed: bool) -> int:
    """Bytes of the copies that hold the policy while it samples; see `toolkit.models.merging`.

    In bfloat16 with what making and using them takes besides.
    """
    if device != "cpu" or not isinstance(model, PeftModel):
        return 0
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")]
    weights = [layer.get_base_layer().weight for layer in layers]  # pyright: ignore
    base: Any = model.get_base_model()
    is_half = recipe.get("fast", True) and is_mixed
    known = {torch.float32, torch.bfloat16} if is_half else {torch.float32}
    if not {w.dtype for w in base.parameters()} <= known:
        return 0
    if not is_half:
        return bytes_of(weights)
    rounded = [w for w in base.parameters() if w.dtype == torch.float32]
    copies = bytes_of(rounded) // 2 + bytes_of(w for w in weights if w.dtype == torch.bfloat16)
    head = base.get_output_embeddings().weight.numel()
    # what is added to a layer is in float32, before it is scaled and after; and oneDNN puts the head
    # in another order for each token that is sampled
    return copies + 2 * 4 * max(w.numel() for w in weights) + 2 * head
