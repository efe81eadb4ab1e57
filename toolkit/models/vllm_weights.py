"""What TRL sends to vLLM: the base's weights with the policy inside, by the base's own names.

TRL 1.16 (generation/vllm_generation.py, _iter_named_params) merges every layer and subtracts the
adapter again, which leaves what rounding makes of it in the base, sends names that vLLM does not know
(scalar heads, wrappers of trained rows), and of a 4-bit base codes without their scales.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

POLICY = "default"


def send_base_weights(generation: Any) -> None:
    """Have vLLM get exactly the weights that its own model has, and leave ours as they are.

    Where the model is sharded, TRL gathers and merges, and only names are put right.

    Args:
        generation: TRL's VLLMGeneration.
    """
    upstream, model = generation._iter_named_params, generation.model
    sharded = generation._dist.is_fsdp or generation._dist.is_zero3

    def named() -> Iterator[tuple[str, Tensor]]:
        if isinstance(model, PeftModel) and not sharded:
            yield from policy_weights(model)
            return
        for name, weight in upstream():
            if not name.startswith("scalar_heads.") and ".trainable_tokens_delta." not in name:
                yield name.replace(".token_adapter.", "."), weight

    generation._iter_named_params = named


def policy_weights(model: PeftModel, adapter: str = POLICY) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the base with an adapter inside, by its own name.

    One matrix at a time is copied; the base is not touched. Quantized matrices come as numbers.

    Args:
        model: with the adapter.
        adapter: its name.
    """
    seen: set[int] = set()
    for name, weight, merged in _walk(model.get_base_model(), "", adapter):
        if id(weight) not in seen:  # a tied head is the embedding
            seen.add(id(weight))
            yield name, merged.detach()


def _walk(module: Any, prefix: str, adapter: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, own weight and what is sent for it, of a module and all below it."""
    if isinstance(module, LoraLayer):
        yield from _merged(module, prefix, adapter)
        return
    if isinstance(module, TrainableTokensWrapper):
        rows = module.token_adapter
        weight: Any = rows.base_layer.weight
        held = rows.trainable_tokens_delta
        shared = getattr(rows, "tied_adapter", None)
        has = adapter in held or (shared is not None and adapter in shared.trainable_tokens_delta)
        yield f"{prefix}weight", weight, rows.get_merged_weights([adapter]) if has else weight
        return
    if isinstance(module, ModulesToSaveWrapper):
        whole: Any = module.modules_to_save
        module = dict(whole).get(adapter, module.original_module)
    for name, weight in module.named_parameters(recurse=False):
        quantized = getattr(weight, "quant_state", None) is not None
        yield f"{prefix}{name}", weight, dequantize_module_weight(module) if quantized else weight
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}{name}.", adapter)


@torch.no_grad()
def _merged(layer: Any, prefix: str, adapter: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The weights of a layer under LoRA, with the adapter inside copies of them."""
    base: nn.Module = layer.get_base_layer()
    own = dict(base.named_parameters(recurse=False))
    if adapter not in layer.lora_A or getattr(own.get("weight"), "quant_state", None) is not None:
        for name, weight, plain in _walk(base, prefix, adapter):
            has = name == f"{prefix}weight" and adapter in layer.lora_A
            delta = layer.get_delta_weight(adapter) if has else 0
            yield name, weight, plain + delta if has else plain
        return
    kept = {name: weight.data for name, weight in own.items()}
    try:
        for weight in own.values():
            weight.data = weight.data.clone()
        layer.merge(adapter_names=[adapter])
        given = {name: weight.data for name, weight in own.items()}
    finally:
        layer.merged_adapters.clear()
        for name, weight in own.items():
            weight.data = kept[name]
    for name, weight in own.items():
        yield prefix + name, weight, given[name]
