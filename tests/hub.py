"""A stand-in for the Hugging Face Hub on this machine, which speaks its protocol."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote

Repositories = dict[str, dict[str, dict[str, bytes]]]
OLD, NEW = "a" * 40, "b" * 40
BRANCHES = {"main": NEW, "v1": OLD}
GATED = "org/gated"


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` and `datasets` ask of the Hub to read a repository.

    Attributes:
        datasets: content of the data sets: id -> commit -> file -> bytes.
        models: the same of the models.
        asked: every path that was asked for.
    """

    datasets: ClassVar[Repositories] = {}
    models: ClassVar[Repositories] = {}
    asked: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(
        self,
        status: int,
        body: Any = b"",
        *,
        error: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.asked.append(path)
        words = re.fullmatch(
            r"(?:/api)?(?:/(datasets|models))?/(org/\w+)(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?", path
        )
        repositories = self.datasets if words and words[1] == "datasets" else self.models
        if words is None or words[2] not in repositories:
            self.answer(200 if path == "/" else 404, error="" if path == "/" else "RepoNotFound")
            return
        _, name, what, revision, file = words.groups()
        commit = BRANCHES.get(revision or "main", revision or "")
        files = repositories[name].get(commit)
        if what == "auth-check" or (name == GATED and what == "resolve"):
            self.answer(403 if name == GATED else 200, error="GatedRepo" if name == GATED else "")
        elif files is None:
            self.answer(404, error="RevisionNotFound")
        elif what in (None, "revision"):
            names = [{"rfilename": file} for file in files]
            gated = "manual" if name == GATED else False
            self.answer(200, {"id": name, "sha": commit, "gated": gated, "siblings": names})
        elif what == "tree":
            self.answer(200, [entry(f, c) for f, c in files.items() if f.startswith(file or "")])
        elif what == "paths-info":
            size = int(self.headers.get("Content-Length", 0))
            sent = self.rfile.read(size).decode()
            wanted = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
            self.answer(200, [entry(f, files[f]) for f in wanted if f in files])
        elif file not in files:
            self.answer(404, error="EntryNotFound")
        else:
            about = {"ETag": f'"{commit[:8]}{file}"', "X-Repo-Commit": commit}
            self.answer(200, files[file], headers=about)

    do_HEAD = do_POST = do_GET


def entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": f"oid-{name}"}


@contextmanager
def running(
    *, datasets: Repositories | None = None, models: Repositories | None = None
) -> Iterator[str]:
    """Serve repositories inside a `with` block; gives the endpoint."""
    Hub.datasets, Hub.models = datasets or {}, models or {}
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def environment(endpoint: str, home: Any) -> dict[str, str]:
    """Variables that make a process take the stand-in for the Hub, with a cache of its own."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
    }
