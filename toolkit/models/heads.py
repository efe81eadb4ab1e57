"""Scalars over a causal base: the value and reward adapters, each with its own scalar head.

The base runs once more, through that adapter, and the head makes a number of each position's last
hidden state. On disk such an adapter is what PEFT calls SEQ_CLS: its head is `score`, so plain PEFT
loads it over `AutoModelForSequenceClassification`.
"""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from toolkit.errors import RecipeError
from toolkit.models.finite import check_finite
from toolkit.models.switching import through

HEAD = "score"
"""What transformers calls the head of a sequence classifier."""
SCORE = f"base_model.model.{HEAD}.weight"
"""The head in a SEQ_CLS adapter's file."""


def where_it_has_rows(method: Any) -> Any:
    """Have PEFT pass over a matrix where an adapter trains no rows, when it saves or loads it.

    PEFT 0.21 (utils/other.py) checks so for modules that are trained whole, not for trained rows: a
    scalar adapter has none in the output matrix, where the policy beside it may have some.
    """

    @functools.wraps(method)
    def rows_of(self: Any, adapter_name: str, *args: Any) -> dict[str, Any]:
        return method(self, adapter_name, *args) if adapter_name in self._adapters else {}

    return rows_of


for _name in ("adapter_state_dict", "adapter_state_dict_load_map"):
    setattr(
        TrainableTokensWrapper, _name, where_it_has_rows(getattr(TrainableTokensWrapper, _name))
    )


@dataclass
class ScalarOutput(FusedCausalLMOutput):
    """What TRL's fused head gives, and beside it the scalars.

    Attributes:
        scalars: float32, one per position, of shape (B, L).
    """

    scalars: Tensor | None = None


def add_scalar_heads(model: PeftModel) -> nn.ModuleDict:
    """Let `model(…, scalar_head=NAME)` also run through adapter NAME and its head.

    With `fused_lm_head=True` the result is TRL's with `scalars` beside it, else the scalars alone.
    Both passes are inside one forward: under DDP, a head used outside the wrapped forward is marked
    ready twice.

    Args:
        model: whose base already has TRL's fused head, if it is to have one.

    Returns:
        The heads by adapter, to which `add_head` adds; they move and save with the model.
    """
    held: Any = getattr(model, "scalar_heads", None)  # of a reward adapter that came first
    heads = nn.ModuleDict() if held is None else held
    model.scalar_heads = heads
    base: Any = model.get_base_model()
    upstream = base.forward

    @functools.wraps(type(base).forward)  # `generate` checks its arguments against the signature
    def forward(*args: Any, scalar_head: str | None = None, **kwargs: Any) -> Any:
        if scalar_head is None:
            return upstream(*args, **kwargs)
        both = "fused_lm_head" in kwargs
        said: Any = upstream(*args, **kwargs) if both else None
        for key in ("fused_lm_head", "labels", "output_router_logits"):
            kwargs.pop(key, None)
        with through(model, scalar_head):
            hidden = base.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        head: Any = heads[scalar_head]
        with torch.autocast(hidden.device.type, enabled=False):
            scalars = head(hidden.to(head.weight.dtype)).float()[..., 0]
        return ScalarOutput(**said, scalars=scalars) if both else scalars

    base.forward = forward
    return heads


def add_head(model: PeftModel, adapter: str, weight: Tensor | None = None) -> None:
    """Give an adapter its head, in float32.

    Args:
        model: with `add_scalar_heads`.
        adapter: the adapter's name.
        weight: of shape (1, H); by default zeros, so that every scalar is 0 at first.
    """
    embedding: Any = model.get_input_embeddings()
    base: Any = model.get_base_model()
    size = base.config.get_text_config().hidden_size
    head = nn.Linear(size, 1, bias=False, device=embedding.weight.device)
    with torch.no_grad():
        head.weight.copy_(torch.zeros_like(head.weight) if weight is None else weight)
    heads: Any = model.scalar_heads
    heads[adapter] = head


def head_of(directory: str) -> Tensor:
    """The head of a reward stage's adapter, or of a saved value adapter, of shape (1, H).

    Args:
        directory: its folder or Hub id.

    Raises:
        RecipeError: if it has none.
    """
    weights = load_peft_weights(directory, device="cpu")
    if SCORE not in weights:
        raise RecipeError(
            f"{directory}: this adapter has no score head ({SCORE}), so it gives no rewards; name "
            "what stage reward has made"
        )
    return weights[SCORE].float()


def load_scalar_adapter(model: PeftModel, directory: str, adapter: str, **kwargs: Any) -> None:
    """Put an adapter from disk and its head on the causal base, beside what is there.

    PEFT loads the layers; the head belongs to another class of model and is loaded here.

    Args:
        model: with `add_scalar_heads`.
        directory: the adapter's folder or Hub id.
        adapter: what it is called here.
        **kwargs: PEFT's, such as `is_trainable`.

    Raises:
        RecipeError: if it has no head, does not fit this base, or a weight is not finite.
    """
    weight = head_of(directory)
    try:
        model.load_adapter(directory, adapter, **kwargs)
        add_head(model, adapter, weight)
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"{directory} does not fit the base of this stage: {said}") from error
    own = ((key, weight) for key, weight in model.named_parameters() if adapter in key.split("."))
    check_finite(directory, own)


def save_scalar_adapter(
    model: PeftModel, adapter: str, directory: Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write an adapter and its head as plain PEFT loads them over a sequence classifier.

    Args:
        model: holds both.
        adapter: its name.
        directory: is made if it is not there.
        state_dict: the whole model's, gathered, where it is sharded over devices.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(
        model, state_dict, adapter_name=adapter, save_embedding_layers=False
    )
    held = model.state_dict() if state_dict is None else state_dict
    weights[SCORE] = held[f"scalar_heads.{adapter}.weight"]
    config = copy.deepcopy(model.peft_config[adapter])
    config.task_type, config.inference_mode = "SEQ_CLS", True
    modules: Any = config
    modules.modules_to_save = sorted({*(modules.modules_to_save or ()), HEAD})
    config.save_pretrained(str(directory))
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    save_file(tensors, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
