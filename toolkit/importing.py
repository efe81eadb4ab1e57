"""Imports large libraries without looking for garbage among what they have just made."""

import gc
import importlib
from types import ModuleType


def import_at_once(name: str) -> ModuleType:
    """A module, imported while the garbage collector rests.

    Python looks through the young objects again and again while modules pile up, and finds next to
    nothing. What is there afterwards counts as old, and is looked through with the old ones.

    Args:
        name: its whole name.
    """
    if not gc.isenabled() or gc.get_freeze_count():  # somebody else has decided on it
        return importlib.import_module(name)
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.unfreeze()  # into the oldest generation, without a look at them
        gc.enable()
