"""What libraries report in their own ways, as one line: disk, packages, network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from toolkit.errors import HubError, RecipeError, ToolkitError
from toolkit.stages.device_faults import of_device
from toolkit.stages.disk import DiskFull, full_disk, is_full

NETWORK = ("httpx", "httpx2", "httpcore", "huggingface_hub", "requests")


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn what a library reports inside the block into one line.

    Args:
        folder: the stage's.

    Raises:
        DiskFull: if the disk is full.
        TrainingError: if the device lacks memory or an operation.
        RecipeError: if the folder cannot be made, or a key asks for a package that is not here.
        HubError: if the Hub cannot be reached or refuses.
    """
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        if (lacking := of_device(error)) is not None and not isinstance(error, ToolkitError):
            raise lacking from error
        if is_full(error) and not isinstance(error, DiskFull):
            raise full_disk(folder) from error
        if isinstance(error, ToolkitError):
            raise
        if isinstance(error, OSError) and error.filename in {
            str(folder),
            *map(str, folder.parents),
        }:
            raise RecipeError(f"output_dir: {folder} cannot be made ({said})") from error
        if isinstance(error, ImportError) or "to be installed" in said:
            raise RecipeError(f"the recipe needs a package that is not here: {said}") from error
        from_network = type(error).__module__.partition(".")[0] in NETWORK
        if from_network and not isinstance(error, StrictDataclassError):
            raise HubError(f"the Hub cannot be reached, or refuses: {said}") from error
        raise
