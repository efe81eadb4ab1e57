"""Large libraries are imported without looking for garbage among what they have just made, and once."""

import functools
import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

LOOKS = "transformers.utils.import_utils"
"""Where `looking_once` has something to do."""


def import_at_once(name: str) -> ModuleType:
    """A module, imported while the garbage collector rests.

    Python looks through the young objects again and again while modules pile up, and finds next to
    nothing: of 720,000 objects that a stage's imports leave, 1.3 % are garbage, and every look takes
    0.4 s. Where torch comes with them they are never looked through again, like all that is there
    before: no tensor is among it, and what nobody refers to is freed as ever. Where torch was there
    already, so may be a model, and what is there counts as old instead.

    Args:
        name: its whole name.
    """
    if not gc.isenabled():  # somebody else has decided on it
        return importlib.import_module(name)
    is_first = "torch" not in sys.modules
    if is_first:
        gc.collect()
    gc.disable()
    try:
        with looking_once():
            return importlib.import_module(name)
    finally:
        if is_first:
            gc.freeze()
        elif not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, without a look at them
        gc.enable()


@contextmanager
def looking_once() -> Iterator[None]:
    """Inside the block transformers is imported with room for what it finds.

    transformers 5.23 looks through the sources of all its models for their names, and does it twice:
    the 128 places of a bare `functools.lru_cache` are too few for its 550 folders.
    """
    bounded = functools.lru_cache

    def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
        if getattr(maxsize, "__module__", None) == LOOKS:  # a function, decorated without a size
            return bounded(None)(maxsize)
        return bounded(maxsize, typed)

    functools.lru_cache = lru_cache  # type: ignore[assignment]
    try:
        yield
    finally:
        functools.lru_cache = bounded
