"""Push: a trained model to the Hub, with a card, without secrets, and within a time limit."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import toolkit
from toolkit.artifacts.card import About, base_of, model_card
from toolkit.artifacts.finite_files import check_finite
from toolkit.artifacts.hub_names import ask_about, hiding, names_in
from toolkit.artifacts.manifest import MANIFEST, read_json, sha256_of, write_json
from toolkit.artifacts.outgoing import (
    CARD,
    SETTINGS,
    allowed_files,
    check_finished,
    check_paths,
    is_local,
    left_out,
    without_paths,
)
from toolkit.artifacts.pictures import pictures_of
from toolkit.artifacts.secret_search import check_secrets
from toolkit.errors import HubError, ToolkitError, UsageError

SECONDS = 600  # for what does not grow with the files
BYTES_PER_SECOND = 1 << 20  # the slowest upload that is waited for
GRACE_S = 15  # between the last call that the pushing process begins and its end
MERGED = "merge.json"


@dataclass(frozen=True)
class Pushed:
    """How a push ended.

    Attributes:
        repo: the repository's id.
        files: what it holds now of the model, and of how many bytes.
        url: its page at the commit; of the repository where nothing was sent.
        commit: the head of the branch; None after a dry run.
        made: whether that commit is new; False where the Hub held the same bytes already.
        notes: what a person should know: what stays here, what is withheld, what was removed.
    """

    repo: str
    files: dict[str, int]
    url: str
    commit: str | None = None
    made: bool = False
    notes: list[str] = field(default_factory=list)


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    dry_run: bool = False,
    seconds: float | None = None,
    trained: str | Path | None = None,
    share_samples: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Push an adapter or a model, or say what would be pushed.

    Args:
        folder: where it is.
        repo: NAMESPACE/NAME; created where it is not there.
        private: refuse to write to a public repository; a new one is private.
        revision: the branch, created from `main` where there is none.
        dry_run: change nothing on the Hub.
        seconds: the time limit; by default ten minutes and one second for each MiB.
        trained: the stage's folder, where `folder` is a merged copy of what it trained.
        share_samples: name private repositories as they are called.
        tell: called with one line while something is tried again.

    Raises:
        UsageError: if the folder holds no model, or the id is none.
        HubError: if anything goes wrong; it says where the model is and how to repeat.
    """
    folder = Path(folder).expanduser()
    check_id(repo, folder)
    began = time.monotonic()
    with _safe_at(folder, repo, private, revision, share_samples), TemporaryDirectory() as scratch:
        files, notes = prepare(
            folder, repo, Path(scratch), private=private, trained=trained,
            share_samples=share_samples, deadline=began + (seconds or SECONDS), tell=tell,
        )  # fmt: skip
        sizes = {name: path.stat().st_size for name, path in files.items()}
        page = f"{constants.ENDPOINT}/{repo}"
        if dry_run:
            return Pushed(repo, sizes, page, notes=notes)
        limit = seconds or SECONDS + sum(sizes.values()) / BYTES_PER_SECOND
        ended = in_a_process(
            {
                "repo": repo, "files": {name: str(path) for name, path in files.items()},
                "private": private, "revision": revision or "main",
                "seconds": max(limit - (time.monotonic() - began), 1),
            }
        )  # fmt: skip
    if ended["removed"]:
        notes.append(f"removed what an earlier push left: {', '.join(ended['removed'])}")
    if ended["private"] and not private:
        notes.append(f"{repo} was private already, and stays so")
    commit = ended["commit"]
    return Pushed(repo, sizes, f"{page}/commit/{commit}", commit, ended["made"], notes)


def check_id(repo: str, folder: Path) -> None:
    """Refuse what is no id of a repository.

    Raises:
        UsageError: naming what is expected.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo}: {error}") from error
    if repo.count("/") != 1:
        raise UsageError(f"{repo}: expected NAMESPACE/NAME, such as your-name/{folder.name}")


def prepare(
    folder: Path,
    repo: str,
    scratch: Path,
    *,
    private: bool,
    trained: str | Path | None = None,
    share_samples: bool = False,
    deadline: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Path], list[str]]:
    """The files of a push: those of the folder, and those that are written anew for it.

    Args:
        folder: where the model is.
        repo: where it goes.
        scratch: where the card, the manifest and settings without local paths are written.
        private: whether the repository is private.
        trained: as of `push`.
        share_samples: as of `push`.
        deadline: until when the Hub is asked, by `time.monotonic`; by default for ten minutes.
        tell: as of `push`.

    Returns:
        The files by their path in the repository, and notes for the user.

    Raises:
        UsageError: if the folder holds no model.
        HubError: if a file holds a secret or a local path, or is not what the stage has proved.
    """
    files = allowed_files(folder)
    origin = Path(trained).expanduser() if trained is not None else folder
    manifest = check_finished(origin, allowed_files(origin))
    if origin != folder:
        manifest["merged"] = read_json(folder / MERGED) or {}
    stays = left_out(folder, files)
    notes = [f"stays here: {', '.join(stays)}"] if stays else []
    deadline = deadline or time.monotonic() + SECONDS
    licences, hidden = ask_about(names_in(origin, files), deadline, tell)
    rename = (lambda text: text) if share_samples else hiding(hidden)
    base = base_of(origin, read_json(folder / "adapter_config.json") or {})
    if base in hidden and not private and "adapter_config.json" in files:
        raise HubError(
            f"the base {base} is private, and {repo} would be public: nobody could load the adapter, "
            "and its name would be told; push without --no-private"
        )
    if hidden and not share_samples:
        notes.append(f"not named in the card, for it cannot be seen by all: {', '.join(hidden)}")
    if is_local(base) and "adapter_config.json" in files:
        notes.append(f"the base {base} is a folder here; others must bring their own copy of it")
    for name in [name for name in files if name.split("/")[-1] in SETTINGS]:
        keep = (lambda text: text) if name.endswith("adapter_config.json") else rename
        files[name] = cleaned(files[name], scratch / name, keep)
    files |= described(folder, origin, scratch, About(repo, licences, rename))
    if manifest:
        files[MANIFEST] = recorded(manifest, files, scratch / MANIFEST, rename)
    check_all(files, folder, proved=bool(manifest) and origin == folder)
    return dict(sorted(files.items())), notes


def check_all(files: Mapping[str, Path], folder: Path, *, proved: bool) -> None:
    """Refuse what must not leave this machine.

    Args:
        files: by their path in the repository.
        folder: where the model is.
        proved: whether its weights were looked at when its stage ended.

    Raises:
        HubError: if a file holds a secret, a local path, or weights that are not finite.
    """
    if not proved:
        check_finite(files)
    check_secrets(files)
    check_paths(files, folder)


def described(folder: Path, origin: Path, scratch: Path, about: About) -> dict[str, Path]:
    """The pictures of a stage, and the card that shows them; arguments as of `prepare`."""
    pictures = pictures_of(origin, scratch, about)
    card = scratch / CARD
    text = model_card(folder, replace(about, pictures=list(pictures)), trained=origin)
    card.write_text(text, encoding="utf-8")
    return {**pictures, CARD: card}


def cleaned(source: Path, target: Path, rename: Callable[[str], str]) -> Path:
    """A JSON file without local paths: the file itself, byte for byte, where it has none."""
    found = read_json(source)
    clean = without_paths(found, rename)
    if found is None or clean == found:
        return source
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, clean)
    return target


def recorded(
    manifest: Mapping[str, Any],
    files: Mapping[str, Path],
    target: Path,
    rename: Callable[[str], str],
) -> Path:
    """The stage's manifest as others may read it, which names the files as they are pushed."""
    outputs = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in files.items()
        if "/" not in name
    }
    write_json(target, without_paths({**manifest, "outputs": outputs}, rename))
    return target


def in_a_process(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run `hub_commit` until it ends or its time is over.

    Raises:
        HubError: with its one sentence, or because it did not end.
    """
    root = Path(toolkit.__file__).parents[1]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from toolkit.artifacts import hub_commit"
    )
    seen = sys.stderr.isatty()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"{code}; sys.exit(hub_commit.main())"],
            input=json.dumps(job), text=True, check=False, stdout=subprocess.PIPE,
            stderr=None if seen else subprocess.PIPE, timeout=job["seconds"] + GRACE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HubError(
            f"the push did not end within {job['seconds']:.0f} s and was stopped; files that arrived "
            "whole are not sent again; look at your connection, or give it longer with --timeout"
        ) from error
    try:
        ended = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr or "").strip().splitlines()[-1:] or [f"code {done.returncode}"]
        raise HubError(f"the pushing process broke off ({last[0]})") from error
    if "error" in ended:
        raise HubError(ended["error"])
    return ended


@contextmanager
def _safe_at(
    folder: Path, repo: str, private: bool, revision: str | None, share_samples: bool
) -> Any:
    """Say behind every failure that nothing is lost, and how to repeat."""
    words = ["toolkit", "push", str(folder), repo]
    words += [] if private else ["--no-private"]
    words += ["--revision", revision] if revision else []
    words += ["--share-samples"] if share_samples else []
    try:
        yield
    except HubError as error:
        raise HubError(
            f"{str(error).rstrip('.')}; your model is safe at {folder}; repeat with: {shlex.join(words)}"
        ) from error
    except ToolkitError:
        raise
    except OSError as error:
        raise HubError(
            f"{error}; your model is safe at {folder}; repeat with: {shlex.join(words)}"
        ) from error
