"""Exact copies of an adapter beside it, such as the frozen reference of what is trained."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel

from toolkit.models.switching import adapter_weights


def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Set every weight of one adapter to that of another, in the precision of the other.

    Args:
        model: with both adapters.
        source: what is copied; it stays as it is.
        target: what becomes its copy; it may lack weights that the other has.

    Raises:
        ValueError: if it has others.
    """
    given, weights = adapter_weights(model, source), adapter_weights(model, target)
    shapes = {place: weight.shape for place, weight in given.items()}
    if not weights or any(shapes.get(place) != weight.shape for place, weight in weights.items()):
        raise ValueError(
            f"adapter {target!r} cannot become a copy of {source!r}: they hold {len(weights):,} and "
            f"{len(given):,} weights, not the same ones"
        )
    for place, weight in weights.items():
        weight.data = given[place].detach().to(weight.device, copy=True)


@contextmanager
def added_as_copies(model: PeftModel, source: str = "default") -> Iterator[None]:
    """Have every adapter that is added inside the block start as an exact copy of one.

    TRL 1.16 (dpo_trainer.py and grpo_trainer.py, where they add "ref") copies the weights that have
    ".default." in their names. The trained rows of added tokens have not, so TRL's reference differs
    from what it is the reference of.
    """
    add = model.add_adapter

    def add_copy(adapter_name: str, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        # TRL gives the configuration of `source` itself, which PEFT changes
        add(adapter_name, copy.deepcopy(peft_config), *args, **kwargs)
        copy_adapter(model, source, adapter_name)

    model.add_adapter = add_copy
    try:
        yield
    finally:
        del model.add_adapter
