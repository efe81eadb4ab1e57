"""A Hub on this machine that is written to as well: the protocol of huggingface_hub 2.4, with faults.

It listens on 127.0.0.1 only. Large files go the way of Git LFS; Xet is not spoken.
"""

import base64
import functools
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.utils._http import close_session, default_client_factory

from toolkit.artifacts import hub as pushing
from toolkit.artifacts import hub_access, hub_checkpoint, hub_commit, hub_names
from toolkit.errors import HubError

TOKEN = "hf_" + "a1" * 17
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
CALLS = {
    "whoami": r"GET /api/whoami-v2",
    "create": r"POST /api/repos/create",
    "validate": r"POST /api/validate-yaml",
    "preupload": r"POST /api/(models|datasets)/(.+)/preupload/([^/]+)",
    "batch": r"POST /(datasets/)?(.+)\.git/info/lfs/objects/batch",
    "put": r"PUT /lfs/([0-9a-f]{64})",
    "verify": r"POST /lfs/([0-9a-f]{64})/verify",
    "branch": r"POST /api/(models|datasets)/(.+)/branch/([^/]+)",
    "commit": r"POST /api/(models|datasets)/(.+)/commit/([^/]+)",
    "tree": r"GET /api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?",
    "paths": r"POST /api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)",
    "allowed": r"(?:GET|HEAD) /api/(models|datasets)/([^/]+/[^/]+)/auth-check",
    "info": r"(?:GET|HEAD) /api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?",
    "file": r"(?:GET|HEAD) (?:/(datasets))?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)",
    "alive": r"(?:GET|HEAD) /",
}
"""Every call that is answered, by the name that a fault schedule knows it by."""


@dataclass
class Fault:
    """What goes wrong with one call.

    Attributes:
        status: the answer, with nothing done; 0 drops the connection instead.
        done: whether the call takes effect although no answer comes.
        wait: seconds before anything happens.
        headers: of the answer.
        error: its X-Error-Code.
    """

    status: int = 0
    done: bool = False
    wait: float = 0
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass
class Repository:
    """One repository: every commit is a whole tree, path -> content."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)

    def commit(self, branch: str, files: Mapping[str, bytes], message: str = "") -> str:
        """A new head of a branch; either the whole tree is in it or there is no such commit."""
        parent = self.branches.get(branch, "")
        words = json.dumps([parent, message, len(self.commits), sorted(files)])
        oid = hashlib.sha1(words.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def at(self, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its tree, of a branch's name or a commit's."""
        oid = self.branches.get(revision or "main", revision or "")
        return (oid, self.commits[oid]) if oid in self.commits else None


class Hub:
    """The state of the stand-in.

    Attributes:
        repositories: by kind (models or datasets) and id.
        objects: large files by SHA-256.
        fault: called with the name of every call; gives what goes wrong with it, if anything.
        calls: how often each call was made.
        created: the body of every call that created a repository.
        account: what whoami answers.
        card_errors: what it finds wrong with every card.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.fault: Callable[[str], Fault | None] = lambda name: None
        self.calls: Counter[str] = Counter()
        self.created: list[dict[str, Any]] = []
        self.account: dict[str, Any] = {
            "name": "me",
            "orgs": [{"name": "org", "roleInOrg": "write"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.card_errors: list[str] = []
        self.lock = threading.Lock()
        self.endpoint = ""

    def add(
        self, name: str, files: Mapping[str, bytes], *, kind: str = "models", branch: str = "main",
        private: bool = False, **about: Any,
    ) -> str:  # fmt: skip
        """Put a commit into a repository, which is made where there is none; gives the commit."""
        repository = self.repositories.setdefault((kind, name), Repository(private, **about))
        return repository.commit(branch, files)

    def __getitem__(self, name: str) -> Repository:
        return self.repositories["models", name]


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the tree shows it."""
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if is_large(path):
        oid = sha256(content)
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"
        )
        found["lfs"] = {"oid": oid, "size": len(content), "pointerSize": len(pointer)}
        return found | {"oid": git_oid(pointer.encode())}
    return found | {"oid": git_oid(content)}


class Answers(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    dropped = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", *, error: str = "", **headers: str) -> None:
        if self.dropped:
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"X-Error-Code": error, "X-Error-Message": error, **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        self.dropped = False
        for name, pattern in CALLS.items():
            if found := re.fullmatch(pattern, f"{self.command} {unquote(path)}"):
                self.call(name, *found.groups())
                return
        self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def call(self, name: str, *words: str) -> None:
        with self.hub.lock:
            self.hub.calls[name] += 1
            fault = self.hub.fault(name)
        if fault is not None:
            time.sleep(fault.wait)
            if fault.status:
                self.answer(fault.status, error=fault.error, **fault.headers)
                return
            self.dropped = self.close_connection = not fault.wait
        if fault is None or fault.done or fault.wait:
            with self.hub.lock:
                getattr(self, f"on_{name}")(*words)

    def repository(self, kind: str | None, name: str) -> Repository | None:
        """A repository that the caller may see; otherwise the answer is given here."""
        found = self.hub.repositories.get((kind or "models", name))
        signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not signed):
            self.answer(404 if signed else 401, error="RepoNotFound")
            return None
        return found

    def tree(self, kind: str | None, name: str, revision: str | None) -> Any:
        """A repository, a commit of it and its files; None where the answer is given already."""
        repository = self.repository(kind, name)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            self.answer(404, error="RevisionNotFound")
            return None
        return repository, *found

    def on_alive(self) -> None:
        self.answer(200)

    def on_whoami(self) -> None:
        signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.answer(200 if signed else 401, self.hub.account if signed else b"")

    def on_create(self) -> None:
        asked = json.loads(self.body)
        self.hub.created.append(asked)
        name = f"{asked['organization']}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, error="")
        elif (kind, name) in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo"})
        else:
            private = asked.get("visibility") == "private"
            self.hub.add(name, {".gitattributes": ATTRIBUTES}, kind=kind, private=private)
            self.answer(200, {"url": f"{self.hub.endpoint}/{name}"})

    def on_validate(self) -> None:
        errors = [{"message": message} for message in self.hub.card_errors]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def on_preupload(self, kind: str, name: str, revision: str) -> None:
        found = self.tree(kind, name, revision)
        if found is None:
            return
        files = []
        for asked in json.loads(self.body)["files"]:
            path, present = asked["path"], found[2].get(asked["path"])
            oid = None
            if present is not None:
                oid = sha256(present) if is_large(path) else git_oid(present)
            mode = "lfs" if is_large(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def on_batch(self, kind: str | None, name: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/lfs/{wanted['oid']}"
            if wanted["oid"] not in self.hub.objects:
                actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
                wanted = {**wanted, "actions": actions}
            objects.append(wanted)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def on_put(self, oid: str) -> None:
        whole = sha256(self.body) == oid
        if whole:
            self.hub.objects[oid] = self.body
        self.answer(200 if whole else 400)

    def on_verify(self, oid: str) -> None:
        self.answer(200 if oid in self.hub.objects else 404)

    def on_branch(self, kind: str, name: str, branch: str) -> None:
        found = self.tree(kind, name, "main")
        if found is None:
            return
        taken = branch in found[0].branches
        found[0].branches.setdefault(branch, found[1])
        self.answer(409 if taken else 200, {})

    def on_commit(self, kind: str, name: str, branch: str) -> None:
        found = self.tree(kind, name, branch)
        if found is None:
            return
        repository, head, files = found
        files, header = dict(files), {}
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                self.answer(400, {"error": f"cannot {item['key']} {value['path']}"})
                return
        if header.get("parentCommit", head) != head:
            self.answer(412, {"error": "the branch has moved on"})
            return
        oid = repository.commit(branch, files, header["summary"])
        url = f"{self.hub.endpoint}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": oid})

    def on_info(self, kind: str, name: str, revision: str | None) -> None:
        found = self.tree(kind, name, revision)
        if found is None:
            return
        repository, oid, files = found
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "sha": oid, "private": repository.private, "siblings": siblings}
        gated = "manual" if repository.gated else False
        self.answer(200, about | {"gated": gated, "cardData": repository.card})

    def on_allowed(self, kind: str, name: str) -> None:
        repository = self.repository(kind, name)
        if repository is not None:
            gated = repository.gated
            self.answer(403 if gated else 200, error="GatedRepo" if gated else "")

    def on_tree(self, kind: str, name: str, revision: str, below: str | None) -> None:
        found = self.tree(kind, name, revision)
        if found is not None:
            files = found[2].items()
            self.answer(200, [entry(*file) for file in files if file[0].startswith(below or "")])

    def on_paths(self, kind: str, name: str, revision: str) -> None:
        found = self.tree(kind, name, revision)
        if found is not None:
            sent = self.body.decode()
            wanted = json.loads(sent)["paths"] if sent[0] == "{" else parse_qs(sent)["paths"]
            self.answer(200, [entry(path, found[2][path]) for path in wanted if path in found[2]])

    def on_file(self, kind: str | None, name: str, revision: str, path: str) -> None:
        found = self.tree(kind, name, revision)
        if found is None:
            return
        repository, oid, files = found
        if repository.gated:
            self.answer(403, error="GatedRepo")
        elif path not in files:
            self.answer(404, error="EntryNotFound", X_Repo_Commit=oid)
        else:
            content = files[path]
            about = entry(path, content)
            etag = about["lfs"]["oid"] if "lfs" in about else about["oid"]
            linked = {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(content))}
            first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(first[1]) if first else 0
            part = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            headers = {
                "ETag": f'"{etag}"',
                "X_Repo_Commit": oid,
                **(linked if "lfs" in about else {}),
            }
            self.answer(
                206 if first else 200, content[start:], **headers, **(part if first else {})
            )


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # clients fetch many files at once


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub inside a `with` block."""
    hub = Hub()
    handler = type("Answers", (Answers,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def in_process(monkeypatch: Any) -> Iterator[Hub]:
    """A Hub that this process takes for the Hub, with waits cut to a thousandth."""
    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        address = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        api = functools.partial(HfApi, endpoint=hub.endpoint)
        for module in (hub_names, hub_commit, hub_access, hub_checkpoint):
            monkeypatch.setattr(module, "HfApi", api)
        monkeypatch.setattr(pushing, "in_a_process", in_this_process)
        monkeypatch.setattr(hub_checkpoint, "in_a_process", in_this_process)
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda s: sleep(s if s < 1 else s / 1000))
        yield hub
        set_client_factory(default_client_factory)
        close_session()


def in_this_process(job: Any) -> dict[str, Any]:
    """What `toolkit.artifacts.hub.in_a_process` does, here."""
    ended = hub_commit.carry_out(job, lambda line: None)
    if "error" in ended:
        raise HubError(ended["error"])
    return ended


def environment(hub: Hub | str, home: Any, token: str = TOKEN) -> dict[str, str]:
    """Variables that make a process take the stand-in for the Hub, with a cache of its own."""
    return {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": token,
    }
