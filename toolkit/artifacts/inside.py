"""A run writes in its own folder: no link in it, and no name that it left, may lead out of it."""

from collections.abc import Mapping
from pathlib import Path

from toolkit.artifacts.manifest import MANIFEST, read_json
from toolkit.errors import RecipeError


def check_inside(run: Path, stage: Path) -> None:
    """Check that what is written below a stage's folder lands below the run's.

    The run's folder itself may be a link, such as to a larger disk.

    Args:
        run: the run's folder.
        stage: the stage's; of a run of one stage the same.

    Raises:
        RecipeError: naming the link, or the file name, that leads elsewhere.
    """
    for folder in dict.fromkeys((run, stage)):
        entries = sorted(folder.iterdir()) if folder.is_dir() else ()
        for link in (entry for entry in entries if entry.is_symlink()):
            if not link.resolve().is_relative_to(run.resolve()):
                raise RecipeError(
                    f"output_dir: {link} is a link that leads out of the run's folder, to "
                    f"{link.resolve()}; remove it, or give another output_dir"
                )
    outputs = (read_json(stage / MANIFEST) or {}).get("outputs", {})
    names = [*outputs] if isinstance(outputs, Mapping) else [str(outputs)]
    strange = [name for name in names if name in ("", ".", "..") or Path(name).name != name]
    if strange:
        raise RecipeError(
            f"output_dir: {stage / MANIFEST} names {strange[0]!r}, which is no file of that folder: "
            "it was not written here; remove it, or give another output_dir"
        )
