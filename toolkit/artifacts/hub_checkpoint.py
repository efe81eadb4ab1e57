"""Checkpoints in a repository: what training is resumed from, pushed, and pulled on a bare machine.

A checkpoint that is pulled holds pickles (`optimizer.pt`, `scheduler.pt`, `rng_state*.pth`), as every
one of transformers' does. Its Trainer reads them with `weights_only=True`, which runs no code.
"""

import fnmatch
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from toolkit.artifacts.checkpoint import SEAL, STATE, damage, listed, numbered, seal
from toolkit.artifacts.hub import BYTES_PER_SECOND, SECONDS, cleaned, in_a_process
from toolkit.artifacts.hub_commit import again
from toolkit.artifacts.hub_errors import sentence
from toolkit.artifacts.hub_names import ASKED_FOR_S
from toolkit.artifacts.manifest import STARTED, changes, read_json, write_json
from toolkit.artifacts.outgoing import BELOW, WEIGHTS, without_paths
from toolkit.artifacts.secret_search import check_secrets
from toolkit.errors import HubError, RecipeError

LAST = "last-checkpoint"  # transformers' name for the newest
RESUMABLE = (STATE, "optimizer.pt", "scheduler.pt")
ALLOWED = (
    *WEIGHTS, *RESUMABLE, "model.safetensors.index.json", "adapter_config.json", "config.json",
    "scaler.pt", "rng_state.pth", "rng_state_*.pth", "rollout_*.pt", "reference.safetensors",
    "guard.json",
)  # fmt: skip
"""What is pushed and pulled of a checkpoint, besides the inputs of its stage."""


def checkpoint_files(checkpoint: Path, scratch: Path) -> dict[str, Path]:
    """The files of a checkpoint that are pushed, by their path in it.

    Args:
        checkpoint: a folder that the Trainer has written.
        scratch: where settings without local paths are written.

    Raises:
        HubError: if the checkpoint is incomplete, or a file holds a secret.
    """
    if missing := [name for name in RESUMABLE if not (checkpoint / name).is_file()]:
        raise HubError(f"{checkpoint.name} is incomplete: {missing[0]} is missing")
    files = {
        file.relative_to(checkpoint).as_posix(): file
        for below in BELOW
        for pattern in ALLOWED
        for file in checkpoint.glob(below + pattern)
        if file.is_file()
    }
    for name in [name for name in files if name.endswith(".json")]:
        files[name] = cleaned(files[name], scratch / name, lambda text: text)
    inputs = read_json(checkpoint.parent / STARTED)
    if inputs is not None:
        files[STARTED] = scratch / STARTED
        write_json(files[STARTED], without_paths(inputs, lambda text: text))
    check_secrets(files)
    # of the files as they are pushed, without local paths
    write_json(scratch / SEAL, {"files": listed(files)})
    files[SEAL] = scratch / SEAL
    return dict(sorted(files.items()))


def push_checkpoint(
    checkpoint: Path, repo: str, below: str, *, revision: str | None = None
) -> dict[str, Any]:
    """Push what training is resumed from to a folder of a private repository, in one commit.

    Args:
        checkpoint: a folder that the Trainer has written, in the folder of its stage.
        repo: NAMESPACE/NAME; it must be private, and is created so.
        below: the folder in the repository.
        revision: the branch; `main` by default.

    Raises:
        HubError: in one sentence.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = checkpoint_files(checkpoint, Path(scratch))
        size = sum(path.stat().st_size for path in files.values())
        return in_a_process(
            {
                "repo": repo, "files": {f"{below}/{name}": str(f) for name, f in files.items()},
                "private": True, "revision": revision or "main", "below": below,
                "message": f"{checkpoint.name}, to resume from",
                "seconds": SECONDS + size / BYTES_PER_SECOND,
            }
        )  # fmt: skip


def pull_checkpoint(
    repo: str,
    folder: Path,
    *,
    revision: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    allow_change: Collection[str] = (),
) -> Path | None:
    """Bring the newest whole checkpoint of a repository into a stage's folder, as `checkpoint-N`.

    A checkpoint there of as many steps or more stays, and nothing is pulled. With the newest comes
    the best, where the Trainer noted one and the repository has it.

    Args:
        repo: NAMESPACE/NAME.
        folder: the stage's, with the inputs of this run in it.
        revision: the branch; `main` by default.
        tell: called with one line about what is looked for or missing.
        allow_change: what may differ in the run that it is of.

    Returns:
        The checkpoint; None where the repository has none that is newer.

    Raises:
        RecipeError: if the checkpoint is of a run with other inputs.
        HubError: if the Hub cannot be asked, or does not give it.
    """
    try:
        pull = Pull(repo, revision, folder, allow_change)
        found = pull.newest()
    except (RepositoryNotFoundError, RevisionNotFoundError):
        tell(f"{repo} is not there, so there is nothing to resume from")
        return None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise HubError(f"resume_from_checkpoint: {sentence(error, repo)}") from error
    if found is None:
        tell(f"{repo} holds no checkpoint, so there is nothing to resume from")
        return None
    name, steps = found
    here = [path for step, path in numbered(folder) if step >= steps]
    if any(next(damage(path), None) is None for path in here):
        return None
    try:
        return pull.bring(name, steps, tell)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise HubError(f"resume_from_checkpoint: {sentence(error, repo)}") from error


class Pull:
    """One look at a commit of a repository, and what is taken out of it.

    Args:
        repo: NAMESPACE/NAME.
        revision: the branch; `main` by default.
        folder: where checkpoints go.
        allow_change: what may differ in the run that it is of.
    """

    def __init__(
        self, repo: str, revision: str | None, folder: Path, allow_change: Collection[str] = ()
    ):
        self.allow_change = allow_change
        self.repo, self.folder, self.deadline = repo, folder, time.monotonic() + SECONDS
        api = HfApi()
        self.commit: str | None = self.again(
            lambda: api.model_info(repo, revision=revision, timeout=ASKED_FOR_S)
        ).sha
        tree = self.again(
            lambda: list(api.list_repo_tree(repo, recursive=True, revision=self.commit))
        )
        self.files = [entry.path for entry in tree if isinstance(entry, RepoFile)]

    def again(self, call: Callable[[], Any]) -> Any:
        """`hub_commit.again` until the deadline."""
        return again(call, self.deadline, lambda line: None)

    def newest(self) -> tuple[str, int] | None:
        """The name and the steps of the newest whole checkpoint."""
        names = {path.split("/")[0] for path in self.files if path.count("/")}
        whole = [
            (int(number), name)
            for name in names
            if all(f"{name}/{file}" in self.files for file in RESUMABLE)
            and (number := self.steps(name)).isdecimal()
        ]
        if not whole:
            return None
        steps, name = max(whole)
        return name, steps

    def steps(self, name: str) -> str:
        """How many steps a folder's name, or the state in it, says; "" for no checkpoint."""
        if name != LAST:
            start, _, number = name.partition("-")
            return number if start == "checkpoint" else ""
        with tempfile.TemporaryDirectory() as scratch:
            state = read_json(self.get(f"{name}/{STATE}", Path(scratch))) or {}
        return str(state.get("global_step", ""))

    def get(self, path: str, place: Path) -> Path:
        """One file, below `place`."""
        return Path(
            self.again(
                lambda: hf_hub_download(self.repo, path, revision=self.commit, local_dir=place)
            )
        )

    def bring(self, name: str, steps: int, tell: Callable[[str], None]) -> Path:
        """Put a checkpoint into the folder, all of it at once."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".hub-") as scratch:
            self.fetch(name, Path(scratch))
            pulled = Path(scratch) / name
            self.check_arrived(pulled, tell)
            check_same_run(pulled, self.folder, self.repo, self.allow_change)
            state = json.loads((pulled / STATE).read_text(encoding="utf-8"))
            if best := state.get("best_model_checkpoint"):
                state["best_model_checkpoint"] = self.best(Path(best).name, steps, tell)
                write_json(pulled / STATE, state)
            seal(pulled, processes=writers(pulled))
            place = self.folder / f"checkpoint-{steps}"
            if place.is_dir() and (phrase := next(damage(place), (None, None))[1]) is not None:
                tell(f"{place.name} here ({phrase}) gives way to that of {self.repo}")
                shutil.rmtree(place)
            return placed(pulled, place)

    def check_arrived(self, pulled: Path, tell: Callable[[str], None]) -> None:
        """Compare what has arrived with the manifest that was pushed with it.

        Raises:
            HubError: naming the file that is another.
        """
        if not (pulled / SEAL).is_file():
            tell(f"{pulled.name} of {self.repo} has no {SEAL}, so nobody knows whether it is whole")
        elif (phrase := next(damage(pulled), (None, None))[1]) is not None:
            raise HubError(
                f"resume_from_checkpoint: {pulled.name} of {self.repo} is not as it was pushed "
                f"({phrase}); push it again, or leave the key out to begin anew"
            )

    def fetch(self, name: str, place: Path) -> None:
        """Download what `ALLOWED` names of one checkpoint."""
        for path in self.files:
            inside = path.removeprefix(f"{name}/")
            if inside != path and (inside in (STARTED, SEAL) or is_allowed(inside)):
                self.get(path, place)

    def best(self, name: str, steps: int, tell: Callable[[str], None]) -> str | None:
        """Where the best checkpoint of the run is here, once it was brought too."""
        place = self.folder / name
        if name == f"checkpoint-{steps}" or place.is_dir():
            return str(place)
        if not any(path.startswith(f"{name}/") for path in self.files):
            tell(f"the best checkpoint so far, {name}, is not in {self.repo}: the last one counts")
            return None
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".hub-") as scratch:
            pulled = Path(scratch) / name
            self.fetch(name, Path(scratch))
            self.check_arrived(pulled, tell)
            seal(pulled, processes=writers(pulled))
            return str(placed(pulled, place))


def is_allowed(path: str) -> bool:
    """Whether a file in a checkpoint is one that is pulled."""
    inside = path.removeprefix("value/")
    return inside.count("/") == 0 and any(fnmatch.fnmatch(inside, part) for part in ALLOWED)


def writers(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint: each its random numbers."""
    return max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


def placed(pulled: Path, place: Path) -> Path:
    """Move a whole folder to where it belongs; what another process put there first stays."""
    try:
        pulled.replace(place)
    except OSError:
        if not place.is_dir():
            raise
    return place


def check_same_run(
    pulled: Path, folder: Path, repo: str, allow_change: Collection[str] = ()
) -> None:
    """Refuse a checkpoint of a run with other inputs, as a folder with one is refused.

    Raises:
        RecipeError: naming what changed.
    """
    before = read_json(pulled / STARTED)
    given: Mapping[str, Any] = without_paths(read_json(folder / STARTED) or {}, lambda text: text)
    found = changes(before, given) if before and given else []
    changed = [phrase for name, phrase in found if name not in allow_change]
    if changed:
        raise RecipeError(
            f"resume_from_checkpoint: the checkpoint in {repo} is of another run "
            f"({'; '.join(changed)}); leave the key out to begin anew, or name another hub_model_id"
        )
    (pulled / STARTED).unlink(missing_ok=True)


def snapshot(checkpoint: Path) -> Path:
    """A second name for a checkpoint's files, which stays when the Trainer removes the first.

    Returns:
        The folder, in one of its own beside the checkpoint's: remove its parent.
    """
    place = Path(tempfile.mkdtemp(dir=checkpoint.parent, prefix=".hub-"))
    inputs = checkpoint.parent / STARTED
    if inputs.is_file():
        shutil.copy2(inputs, place)
    shutil.copytree(checkpoint, place / checkpoint.name, copy_function=linked)
    return place / checkpoint.name


def linked(source: str, target: str) -> None:
    """A hard link, where the file system has them; else a copy."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
