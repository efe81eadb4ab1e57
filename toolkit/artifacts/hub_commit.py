"""The part of a push that speaks to the Hub: looks, commits what differs, looks again.

It runs in a process of its own (`python -m toolkit.artifacts.hub_commit`), because nothing else can
end an upload that hangs: huggingface_hub 2.4 sets no time limit to one, and sleeps as long as a
429 asks for.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    logging,
    set_client_factory,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory

from toolkit.artifacts.hub_errors import of_hub, sentence, status_of, wait_asked
from toolkit.artifacts.model_files import file_digest
from toolkit.artifacts.outgoing import is_ours
from toolkit.errors import HubError

Found = TypeVar("Found")
RETRIED = {408, 409, 412, 425, 429, 500, 502, 503, 504}
TRIES = 10
LONGEST_WAIT_S = 30
SILENCE_S = 300  # how long a server may take to answer, or a connection to pass nothing on


@dataclass
class Push:
    """One push of some files to one branch.

    Attributes:
        api: the client.
        repo: the repository's id.
        files: what goes there, by its path in the repository.
        private: whether it must be private; otherwise it is created public.
        revision: the branch, made from `main` where there is none.
        deadline: when no more is begun, by `time.monotonic`.
        message: of the commit.
        below: the folder of the repository that is brought to the files, and no other place; "" for
            where a model lies.
        tell: called with one line when something is tried again.
        digests: of the files, once they were read.
        seen: every head that was found, and its files.
    """

    api: HfApi
    repo: str
    files: Mapping[str, Path]
    private: bool
    revision: str
    deadline: float
    message: str = "Push of a trained model"
    below: str = ""
    tell: Callable[[str], Any] = lambda line: None
    digests: dict[tuple[str, bool], str] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, RepoFile]]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Bring the branch to the files, with no commit where it holds them already.

        Returns:
            `commit`, the head; `made`, whether it is new; `private`; `removed`, what an earlier push
            left and this one does not have.

        Raises:
            HubError: if a private push would go to a public repository, or the Hub holds other
                bytes in the end.
            Exception: what huggingface_hub raises, once trying again does not help.
        """
        is_private = self.open()
        self.again(self.commit)
        head, present = self.look()
        if differing := self.differing(present):
            raise HubError(f"{self.repo} holds other bytes than were sent in {differing[0]}")
        before, there = self.seen[0]
        removed = [path for path in there if self.is_stale(path)]
        about = {"commit": head, "made": head != before, "private": is_private}
        return about | {"removed": removed}

    def open(self) -> bool:
        """Find the repository and the branch, or create them; whether it is private."""
        try:
            found = self.again(lambda: self.api.model_info(self.repo))
        except RepositoryNotFoundError:
            self.again(self.create)
            found = self.again(lambda: self.api.model_info(self.repo))
        if self.private and not found.private:
            raise HubError(
                f"{self.repo} is public, and this push is private: say --no-private to push there, "
                "or name another repository"
            )
        if self.revision != "main":
            self.again(
                lambda: self.api.create_branch(self.repo, branch=self.revision, exist_ok=True)
            )
        return bool(found.private)

    def create(self) -> None:
        """Create the repository, unless a try whose answer was lost has made it."""
        try:
            self.api.create_repo(self.repo, private=self.private)
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise

    def look(self) -> tuple[str, dict[str, RepoFile]]:
        """The head of the branch and its files."""
        head = self.again(lambda: self.api.model_info(self.repo, revision=self.revision)).sha
        tree = self.again(
            lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=head))
        )
        assert head is not None
        self.seen.append((head, {each.path: each for each in tree if isinstance(each, RepoFile)}))
        return self.seen[-1]

    def commit(self) -> None:
        """Look, and commit what differs from what is there; repeated, it sees its own commit."""
        head, present = self.look()
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(self.files[name]))
            for name in self.differing(present)
        ]
        operations += [
            CommitOperationDelete(path_in_repo=path) for path in present if self.is_stale(path)
        ]
        if operations:
            self.api.create_commit(
                self.repo,
                operations,
                commit_message=self.message,
                revision=self.revision,
                parent_commit=head,
            )

    def is_stale(self, path: str) -> bool:
        """Whether a file is one that a push writes and this one does not have.

        An adapter's files beside a merged model's would be loaded on top of it.
        """
        ours = path.startswith(f"{self.below}/") if self.below else is_ours(path)
        return ours and path not in self.files

    def differing(self, present: Mapping[str, RepoFile]) -> list[str]:
        """The files that the Hub does not have, or has with other bytes."""
        return [
            name
            for name in self.files
            if name not in present or self.digest(name, present[name]) != _remote(present[name])
        ]

    def digest(self, name: str, entry: RepoFile) -> str:
        """A local file's digest of the kind that the Hub gives for it: SHA-256 or git's own."""
        large = entry.lfs is not None
        if (name, large) not in self.digests:
            path = self.files[name]
            self.digests[name, large] = file_digest(path) if large else git_oid(path)
        return self.digests[name, large]

    def again(self, call: Callable[[], Found]) -> Found:
        """`again` until the deadline."""
        return again(call, self.deadline, self.tell)


def again(call: Callable[[], Found], deadline: float, tell: Callable[[str], Any]) -> Found:
    """Make a call, and again after what may pass: a limit, a server's error, a lost connection.

    Args:
        call: what to do; whatever it changes, it must be right to do it once more.
        deadline: when no more is begun, by `time.monotonic`.
        tell: called with one line before each wait.

    Raises:
        Exception: what the call raises, once trying again does not help.
    """
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            wait = pause(error, tried)
            if wait is None or tried == TRIES or time.monotonic() + wait > deadline:
                raise
            tell(f"{short(error)}; trying again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _remote(entry: RepoFile) -> str:
    return entry.blob_id if entry.lfs is None else entry.lfs.sha256


def git_oid(path: Path) -> str:
    """The SHA-1 that git names a file's content by."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def pause(error: Exception, tried: int) -> float | None:
    """Seconds until the next try; None for a failure that does not pass by itself."""
    cause = of_hub(error)
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        return None
    wait = min(2.0 ** (tried - 1), LONGEST_WAIT_S)
    if not isinstance(cause, HfHubHTTPError):
        return wait
    if status_of(cause) not in RETRIED:
        return None
    return max(wait, wait_asked(cause.response))


def short(error: Exception) -> str:
    """What went wrong, in a few words."""
    status = status_of(error)
    return f"the Hub answered {status}" if status else "the connection was lost"


def bounded_client(deadline: float) -> Any:
    """A client of huggingface_hub that waits for no answer, and sleeps for no 429, past a deadline."""

    def refuse_long_wait(response: Any) -> None:
        if response.status_code != 429:
            return
        if time.monotonic() + wait_asked(response) > deadline:
            response.read()
            raise HfHubHTTPError("429: the Hub asks for a longer wait", response=response)

    def refuse_unreadable(response: Any) -> None:
        """Of the check of a card, huggingface_hub reads the answer as JSON before its status."""
        if response.status_code in RETRIED and response.url.path.endswith("/validate-yaml"):
            response.read()
            raise HfHubHTTPError(f"{response.status_code}: the card", response=response)

    left = max(deadline - time.monotonic(), 1)
    client = default_client_factory()
    client.timeout = min(SILENCE_S, left)
    client.event_hooks["response"] += [refuse_long_wait, refuse_unreadable]
    return client


def carry_out(job: Mapping[str, Any], tell: Callable[[str], Any]) -> dict[str, Any]:
    """Do a push that is described in plain data; gives how it ended, or `error`, one sentence."""
    deadline = time.monotonic() + job["seconds"]
    logging.set_verbosity_error()
    set_client_factory(lambda: bounded_client(deadline))
    files = {name: Path(path) for name, path in job["files"].items()}
    more = {key: job[key] for key in ("message", "below") if key in job}
    push = Push(
        HfApi(), job["repo"], files, job["private"], job["revision"], deadline, tell=tell, **more
    )  # fmt: skip
    try:
        return push.run()
    except HubError as error:
        return {"error": str(error)}
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        return {"error": sentence(error, job["repo"])}


def main() -> int:
    """Read a push from standard input as JSON, do it, and write how it ended as JSON."""
    ended = carry_out(json.load(sys.stdin), lambda line: sys.stderr.write(f"  {line}\n"))
    json.dump(ended, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
