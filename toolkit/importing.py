"""Large libraries are imported without looking for garbage among what they have just made."""

import gc
import importlib
import sys
from types import ModuleType


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
        return importlib.import_module(name)
    finally:
        if is_first:
            gc.freeze()
        elif not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, without a look at them
        gc.enable()
