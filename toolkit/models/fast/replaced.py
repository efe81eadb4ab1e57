"""Forward passes of modules, replaced for a while."""

from typing import Any


def replace(module: Any, forward: Any) -> None:
    """Give a module another forward pass, until `bring_back`."""
    forward.former = vars(module).get("forward")
    module.forward = forward


def bring_back(module: Any) -> None:
    """Give a module the forward pass that `replace` took away, if it did."""
    forward = vars(module).get("forward")
    if hasattr(forward, "former"):
        del module.forward
        if forward.former is not None:
            module.forward = forward.former
