"""The server: it listens, and at SIGTERM finishes what it has begun and takes nothing more."""

import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn

from toolkit.inference.serving.guard import Door

HEAD_BYTES = 32 * 1024
IDLE_S = 15.0
"""How long a client may hold a connection without having sent the head of a request."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which at a signal refuses new requests, and ends with the last answer.

    uvicorn itself stops listening at once, and passes the signal on when it has ended.

    Args:
        app: the ASGI application.
        door: counts the requests.
        connections: at most so many at a time; who comes then is sent 503.
    """

    def __init__(self, app: Any, door: Door, *, connections: int):
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                server_header=False,
                limit_concurrency=connections,
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )
        self.door = door
        self.idle: dict[Any, tuple[Any, float]] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second Ctrl-C ends at once."""
        if self.door.is_draining and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True
        self.door.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second."""
        self.close_idle(time.monotonic())
        is_done = self.door.is_draining and not self.door.running
        return await super().on_tick(counter) or is_done

    def close_idle(self, now: float) -> None:
        """Close connections on which nothing was asked for too long; uvicorn waits for ever.

        Args:
            now: in seconds of a monotonic clock.
        """
        before, self.idle = self.idle, {}
        connections: Any = self.server_state.connections
        for each in list(connections):
            cycle = each.cycle  # of the newest request, in uvicorn 0.54's HTTP protocols
            if cycle is not None and not cycle.response_complete:
                continue
            known, since = before.get(each, (None, now))
            since = since if known is cycle else now
            self.idle[each] = (cycle, since)
            if now - since > IDLE_S:
                each.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: if the address cannot be had.
    """
    family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, number)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError:
        found.close()
        raise
    return found
