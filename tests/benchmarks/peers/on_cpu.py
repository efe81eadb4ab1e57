"""Axolotl's way to an argument of the Trainer that it has no key for."""

from typing import Any

from axolotl.integrations.base import BasePlugin


class OnCPU(BasePlugin):
    """Without `use_cpu` bf16 is refused where there is no GPU."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """What is added to the arguments of the Trainer."""
        return {"use_cpu": True}
