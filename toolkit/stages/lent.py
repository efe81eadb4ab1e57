"""What Python lends to a stage: a model in memory, which is given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.errors import RecipeError
from toolkit.models.as_it_was import AsItWas
from toolkit.models.load import load_tokenizer


@dataclass
class Loan:
    """What the block made of the model.

    Attributes:
        trained: the adapter around it, once there is one.
    """

    trained: Any = None


@contextmanager
def lent(model: PreTrainedModel | None) -> Iterator[Loan]:
    """Use a model inside the block, then undo all that was done to it, adapter and added tokens too.

    Without an adapter (`use_peft: false`) it is itself what is trained, and stays so.
    """
    loan = Loan()
    if model is None:
        yield loan
        return
    start = AsItWas(model)
    try:
        yield loan
    finally:
        if isinstance(loan.trained, PeftModel):
            start.restore()


def check_base(model: Any) -> None:
    """Refuse a model that is no base.

    Raises:
        RecipeError: if it holds an adapter already.
    """
    if isinstance(model, PeftModel) or any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        raise RecipeError(
            "model: expected a base, found one that holds an adapter; give the base, and the "
            "adapter's folder as start_from"
        )


def tokenizer_beside(
    model: PreTrainedModel | None, parent: str | None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer from where a lent model came; that of the adapter it continues comes first.

    Raises:
        RecipeError: if the model came from nowhere.
    """
    if model is None or parent is not None:
        return None
    if not model.name_or_path:
        raise RecipeError("model was given without its tokenizer: give processing_class too")
    return load_tokenizer(model.name_or_path)
