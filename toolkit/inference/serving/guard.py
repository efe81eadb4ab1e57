"""Who may ask, and when: the host that is named, the token, the type and length of a body, the drain.

It stands before the application, so nothing reaches it that was not looked at.
"""

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.inference.serving.refusal import Refusal

GRACE_S = 5.0
"""Beyond the time of an answer: for a body that comes slowly, or a client that reads slowly."""
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass
class Door:
    """Who may come in.

    Attributes:
        hosts: what a request may call this server; None for any. A page that has its own name point to
            this machine is told by the name.
        token: what a client has to show; None if nothing.
        body_bytes: of a request at most.
        seconds: for a request and its answer at most.
        is_draining: whether no request is taken any more.
        running: requests that are being answered.
    """

    hosts: frozenset[str] | None
    token: bytes | None
    body_bytes: int
    seconds: float
    is_draining: bool = False
    running: int = 0

    def check(self, scope: Mapping[str, Any]) -> None:
        """Look at the head of a request.

        Raises:
            Refusal: if it may not come in.
        """
        headers = {key.lower(): value for key, value in scope["headers"]}
        host = name_of(headers.get(b"host", b"").decode("latin-1"))
        if self.hosts is not None and host not in self.hosts:
            raise Refusal(421, f"this server is not called {host[:60]!r}; use localhost")
        if scope["path"] == "/health":
            return
        if self.token is not None:
            kind, _, shown = headers.get(b"authorization", b"").partition(b" ")
            is_right = hmac.compare_digest(shown.strip(), self.token)
            if kind.lower() != b"bearer" or not is_right:
                raise Refusal(
                    401, "a token is needed: Authorization: Bearer …", code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
        if scope["method"] != "POST":
            return
        if self.is_draining:
            raise Refusal(
                503,
                "this server is shutting down",
                headers={"Retry-After": "5", "Connection": "close"},
            )
        # a page of another origin may post text without asking, and JSON only if it is allowed to
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise Refusal(415, "expected Content-Type: application/json")
        if int(headers.get(b"content-length", b"0")) > self.body_bytes:
            raise self.too_long()

    def too_long(self) -> Refusal:
        """What is said of a body that is too long."""
        return Refusal(
            413,
            f"expected a body of at most {self.body_bytes:,} bytes",
            headers={"Connection": "close"},
        )


class Guard:
    """An application behind its door.

    Args:
        app: what is guarded.
        door: who may come in.
    """

    def __init__(self, app: ASGIApp, door: Door):
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self.door.check(scope)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send)
            return
        self.door.running += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.door.running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.door.body_bytes:
                raise self.door.too_long()
            return message

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            async with asyncio.timeout(self.door.seconds + GRACE_S):
                await self.app(scope, counted, noted)
        except (Refusal, TimeoutError) as error:
            late = Refusal(
                408, f"not done within {self.door.seconds:g} s", headers={"Connection": "close"}
            )
            if (
                has_begun
            ):  # the connection is closed, and so the client sees that the end is missing
                return
            refusal = error if isinstance(error, Refusal) else late
            await refused(refusal)(scope, receive, send)


def refused(refusal: Refusal) -> JSONResponse:
    """What a client is sent."""
    return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)


def name_of(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdecimal() else host.strip().lower()
