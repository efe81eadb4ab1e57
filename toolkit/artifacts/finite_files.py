"""Whether the weights in files are numbers, before they go to others."""

from collections.abc import Mapping
from pathlib import Path

from toolkit.errors import HubError


def check_finite(files: Mapping[str, Path]) -> None:
    """Refuse to push weights of which one is a NaN or an infinity.

    What a stage has proved was looked at then; this is for what others made, or was merged.

    Args:
        files: by their path in the repository.

    Raises:
        HubError: naming the file and the tensor, or the file that cannot be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    for name, path in files.items():
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                    if not torch.isfinite(tensors.get_tensor(key).float()).all():
                        raise HubError(
                            f"{name}: tensor {key} holds NaN or infinity, so nothing the model gives "
                            "is a number; train it again, or push an earlier checkpoint"
                        )
        except SafetensorError as error:
            raise HubError(f"{name}: cannot be read ({error}); save it again") from error
