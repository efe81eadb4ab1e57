"""Large libraries are imported without looking for garbage among what they have just made, and once."""

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


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
        with unbounded_caches():
            return importlib.import_module(name)
    finally:
        if is_first:
            gc.freeze()
        elif not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, without a look at them
        gc.enable()


@contextmanager
def unbounded_caches() -> Iterator[None]:
    """Inside the block what is decorated with a bare `functools.lru_cache` keeps all it was asked.

    transformers 5.23 (utils/import_utils.py) looks through the sources of all its models for their
    names, and does it twice: 128 places, which such a cache has, are too few for its 550 folders.
    """
    bounded = functools.lru_cache

    def lru_cache(maxsize: int | Callable[..., Any] | None = 128, typed: bool = False) -> Any:
        return bounded(None)(maxsize) if callable(maxsize) else bounded(maxsize, typed)

    functools.lru_cache = lru_cache  # type: ignore[assignment]
    try:
        yield
    finally:
        functools.lru_cache = bounded
