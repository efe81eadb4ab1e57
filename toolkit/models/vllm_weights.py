"""What TRL sends to vLLM: the base's weights with the policy merged, by the base's own names."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def send_base_weights(generation: Any) -> None:
    """Keep from vLLM what its model has not: scalar heads, and the wrappers of trained rows.

    TRL 1.16 (generation/vllm_generation.py, _iter_named_params) leaves out LoRA's weights only, and
    vLLM stops at a name that it does not know.

    Args:
        generation: TRL's VLLMGeneration.
    """
    upstream = generation._iter_named_params

    def named() -> Iterator[tuple[str, Tensor]]:
        for name, weight in upstream():
            if not name.startswith("scalar_heads.") and ".trainable_tokens_delta." not in name:
                yield name.replace(".token_adapter.", "."), weight

    generation._iter_named_params = named
