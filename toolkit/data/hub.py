"""Data sets of the Hugging Face Hub: found and allowed before anything is downloaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import datasets.config as settings
from datasets import Dataset, DatasetBuilder
from datasets.exceptions import DatasetGenerationError, DatasetsError
from huggingface_hub import HfApi, constants, is_offline_mode
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

from toolkit.data.columns import listed
from toolkit.data.splits import check_split
from toolkit.errors import DataError, HubError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CONFIGURATIONS = re.compile(r"[Aa]vailable[^\[]*\[([^\]]*)\]")  # as `datasets` lists them
COMMIT = re.compile(r"[0-9a-f]{40}")
CHECK_TIMEOUT_S = 20


def load_from_hub(
    name: str, config: str | None, split: str, revision: str | None, **where: Any
) -> tuple[Dataset, dict[str, Any]]:
    """One split of a data set on the Hub; from the cache without a connection.

    Args:
        name: its id.
        config: which of its configurations.
        split: as `datasets` takes it, such as `train[:1000]`.
        revision: a branch, tag or commit.
        **where: `data_dir` and `data_files`, where given.

    Returns:
        The rows, and where they come from: `revision`, the commit; `fingerprint`; `notes`; and
        `config` where given.

    Raises:
        HubError: if the Hub does not give it, or it has no such revision, configuration or split.
        DataError: if its files cannot be read.
    """
    commit = commit_of(name, revision)
    with _one_line(name, commit), _cache_only(commit is None):
        builder = datasets.load_dataset_builder(name, config, revision=commit or revision, **where)
    if commit is None:
        _check_cached(name, revision, builder.hash)
    if known := _splits(builder):
        check_split(f"data set {name!r}", split, known, error=HubError)
    with _one_line(name, commit):
        builder.download_and_prepare()
        found = builder.as_dataset(split=split)
    assert isinstance(found, Dataset)
    origin = {"revision": builder.hash, "fingerprint": found._fingerprint, "notes": []}
    if commit is None:
        origin["notes"] = [f"{name}: from the local cache, at commit {builder.hash}"]
    return found, origin | ({"config": config} if config else {})


def page_of(name: str) -> str:
    """The address of a data set's page."""
    return f"{constants.ENDPOINT}/datasets/{name}"


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set stands for; None without a connection.

    Raises:
        HubError: if the Hub does not have it, or asks for a login or an accepted licence.
    """
    page, login = page_of(name), "log in with `hf auth login`"
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


def _check_cached(name: str, revision: str | None, cached: str | None) -> None:
    """Check that the cache has the revision: `datasets` takes the latest that it has, whatever it is.

    Raises:
        HubError: if it is another commit, or nobody can say which one the revision is.
    """
    if revision is None or revision == cached:
        return
    what = "is another commit" if COMMIT.fullmatch(revision) else "may be another"
    raise HubError(
        f"data set {name!r}: the Hub is out of reach, and revision {revision!r} {what} than the "
        f"cached {cached}: connect, or set dataset_revision to the cached one"
    )


def _splits(builder: DatasetBuilder) -> list[str]:
    """The splits that a data set declares, known before its files are; [] if it declares none."""
    declared = getattr(builder.config, "data_files", None) or builder.info.splits or {}
    return [str(split) for split in declared]


@contextmanager
def _cache_only(wanted: bool) -> Iterator[None]:
    """Keep `datasets` from trying again for half a minute to reach a Hub that is out of reach."""
    before = settings.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = wanted or before
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before


@contextmanager
def _one_line(name: str, commit: str | None) -> Iterator[None]:
    """Turn what `datasets` raises into one line that says what to do."""
    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise HubError(
            f"the Hub does not give data set {name!r}; see {page_of(name)}; `hf auth login`"
        ) from error
    except (ConnectionError, HTTPError) as error:
        raise _out_of_reach(name) from error
    except (DatasetsError, ValueError, RuntimeError, OSError) as error:
        if commit is None and isinstance(error, FileNotFoundError):
            raise _out_of_reach(name) from error
        inner = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        words = " ".join(str(inner or error).split())
        if choices := CONFIGURATIONS.search(words):
            names = listed(re.findall(r"[^\s',]+", choices[1]))
            raise HubError(
                f"data set {name!r} has the configurations {names}: name one with dataset_config"
            ) from error
        raise DataError(f"data set {name!r}: {words[:400]}; see {page_of(name)}") from error


def _out_of_reach(name: str) -> HubError:
    why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the Hub is out of reach"
    return HubError(
        f"data set {name!r} is not in the local cache and {why}: connect, or give a local file"
    )
