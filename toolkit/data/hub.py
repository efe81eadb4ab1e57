"""Data sets of the Hugging Face Hub: found and allowed before anything is downloaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from toolkit.errors import DataError, HubError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CHECK_TIMEOUT_S = 20


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set stands for; None without a connection.

    Raises:
        HubError: if the Hub does not have it, or asks for a login or an accepted licence.
    """
    page = f"https://huggingface.co/datasets/{name}"
    login = "log in with `hf auth login`"
    try:
        api = HfApi()
        found = api.dataset_info(name, revision=revision, timeout=CHECK_TIMEOUT_S)
        if found.gated:  # its page is public; only this asks whether its files may be had
            api.auth_check(name, repo_type="dataset")
        return found.sha
    except GatedRepoError as error:
        raise HubError(
            f"data set {name!r} is gated: accept its terms at {page}, and {login}"
        ) from error
    except DisabledRepoError as error:
        raise HubError(f"data set {name!r} has been disabled; see {page}") from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"data set {name!r} has no revision {revision!r}; see {page}/commits for those it has"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise HubError(
            f"data set {name!r} is not on the Hub, or is private, and no file or folder here has "
            f"that name: check the spelling at {page}; if it is private, {login}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise HubError(
                f"the Hub refuses data set {name!r} ({status}): see {page}, and {login}"
            ) from error
        if status < 500:
            raise HubError(f"the Hub refuses data set {name!r} ({status}); see {page}") from error
        return None
    except (OfflineModeIsEnabled, HTTPError, OSError):
        return None


def load_from_hub(
    name: str, config: str | None, split: str, revision: str | None, **where: Any
) -> tuple[Dataset, str | None]:
    """One split of a data set on the Hub, and its commit; from the cache without a connection.

    Args:
        name: its id.
        config: which of its configurations.
        split: as `datasets` takes it, such as `train[:1000]`.
        revision: a branch, tag or commit.
        **where: `data_dir` and `data_files`, where given.

    Raises:
        HubError: if it cannot be had.
        DataError: if it has no such configuration or split, or is none that is read.
    """
    commit = commit_of(name, revision)
    with _one_line(name, connected=commit is not None):
        found = datasets.load_dataset(
            name, config, split=split, revision=commit or revision, **where
        )
    assert isinstance(found, Dataset)
    return found, commit or _cached_commit(found) or revision


def _cached_commit(dataset: Dataset) -> str | None:
    """The commit that a cached data set was downloaded at: its files' addresses have it."""
    for address in dataset.info.download_checksums or {}:
        if match := re.search(r"@([0-9a-f]{40})/", str(address)):
            return match[1]
    return None


@contextmanager
def _one_line(name: str, *, connected: bool) -> Iterator[None]:
    """Turn what `datasets` raises into one line that says what to do."""
    page = f"https://huggingface.co/datasets/{name}"
    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise HubError(
            f"the Hub does not give data set {name!r}; see {page}; `hf auth login`"
        ) from error
    except (ConnectionError, HTTPError) as error:
        raise _out_of_reach(name, error) from error
    except (DatasetsError, ValueError, RuntimeError, OSError) as error:
        if not connected and isinstance(error, FileNotFoundError):
            raise _out_of_reach(name, error) from error
        words = " ".join(str(error).split())
        if "Config name is missing" in words or "BuilderConfig" in words:
            words += " (recipe key: dataset_config)"
        raise DataError(f"data set {name!r}: {words[:400]}; see {page}") from error


def _out_of_reach(name: str, error: Exception) -> HubError:
    offline = (
        isinstance(error.__cause__ or error, OfflineModeIsEnabled) or datasets.config.HF_HUB_OFFLINE
    )
    why = "HF_HUB_OFFLINE is set" if offline else "the Hub is out of reach"
    return HubError(
        f"data set {name!r} is not in the local cache and {why}: connect, or give a local file"
    )
