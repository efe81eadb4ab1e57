"""What upstream raises while it loads a model, as one line: what the Hub refuses, broken files."""

import errno
import json
import pickle
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open

from toolkit.errors import HubError, RecipeError, ToolkitError

# What readers of files raise over one that was cut off or is not what its name says. A TypeError
# is none of them: it comes from a key that a model does not take, or from the user's own code.
BROKEN = (
    OSError, EOFError, UnicodeError, json.JSONDecodeError, LookupError, pickle.UnpicklingError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip
SHOWN = 300  # characters of what upstream says, which lists every architecture that it knows
NO_FAULT_OF_FILES = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


def hub_error(error: Exception, name: str) -> ToolkitError | None:
    """The one line for what the Hub did not give of `name`; None if the failure is another."""
    page = f"{constants.ENDPOINT}/{name}"
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return HubError(
                f"{name}: access is gated; accept the terms at {page}, then run `hf auth login`"
            )
        if isinstance(cause, RevisionNotFoundError):
            return HubError(f"{name}: no such revision on the Hub; see {page}/commits/main")
        if isinstance(cause, RepositoryNotFoundError):
            return HubError(
                f"{name}: no such repository on the Hub, or it is private; "
                f"check {page}, or run `hf auth login`"
            )
        if isinstance(cause, HFValidationError):
            return RecipeError(
                f"{name}: neither a folder here nor a Hub id of the form NAMESPACE/NAME"
            )
        if isinstance(cause, LocalEntryNotFoundError):
            return out_of_reach(name)
    is_local = Path(name).expanduser().is_dir()  # upstream names the Hub beside any folder
    if isinstance(error, OSError) and constants.ENDPOINT in str(error) and not is_local:
        return HubError(f"{name}: the Hub could not give it ({str(error).splitlines()[0]})")
    return None


def out_of_reach(name: str) -> HubError:
    """The one line for what neither the cache nor the Hub gives."""
    return HubError(
        f"{name}: not in the local cache and the Hub cannot be reached (offline); connect once, or "
        "name a local folder"
    )


def broken_files(error: Exception, name: str, folder: Path) -> RecipeError | None:
    """The one line for files that cannot be read; None if the failure is another.

    A lack of memory, disk or network, a missing package and a bug stay what they are.

    Args:
        error: what upstream raised.
        name: what the line names.
        folder: where the files are, if they are in a folder of this machine.
    """
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        return None
    if isinstance(error, OSError) and error.errno in NO_FAULT_OF_FILES:
        return None
    said = " ".join(str(error).split())
    culprit = broken_file(folder) if folder.is_dir() else None
    # readers that are written in other languages have no class of their own for it
    from_reader = type(error) is Exception or "PytorchStreamReader" in said
    if isinstance(error, BROKEN) or from_reader or (isinstance(error, TypeError) and culprit):
        if isinstance(error, pickle.UnpicklingError | EOFError):
            said = "a .bin of it is no file that torch.save wrote"  # torch's own advice is unsafe
        elif culprit or isinstance(error, LookupError):
            said = f"{culprit or type(error).__name__}: {said}"
        return RecipeError(
            f"{name}: cannot be loaded ({said[:SHOWN]}); a file of it is missing, broken or cut off: put it "
            "back, or download the model again (--debug shows where)"
        )
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in said:
        return RecipeError(
            f"{name}: cannot be loaded (its weights have other shapes than its config.json says); "
            "put the files of one model together, or download it again"
        )
    return unfit(said, name) if isinstance(error, ValueError) else None


def unfit(said: str, name: str) -> RecipeError:
    """The one line for a model that can be read, but not be used like this."""
    if "backend tokenizer" in said:
        return RecipeError(
            f"{name}: holds no tokenizer that can be read; put its tokenizer.json beside the "
            "config.json, or download the model again"
        )
    if "trust_remote_code" in said:
        return RecipeError(
            f"{name}: brings Python code of its own; to trust it, add --trust_remote_code REPO@SHA "
            "to the command"
        )
    return RecipeError(
        f"{name}: cannot be loaded ({said[:SHOWN]}); mend what it names, or name another model (--debug "
        "shows where)"
    )


def broken_file(folder: Path) -> str | None:
    """The first file of a model that is none of what its name says; None where all can be read."""
    for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    continue
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError):
            return file.name
        if file.name.endswith("config.json") and not isinstance(found, dict):
            return file.name
    return None
