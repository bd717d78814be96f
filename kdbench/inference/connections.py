"""Limit what connections can take of a server: their number, and the time until they have sent a request.

uvicorn's own limit counts connections that send nothing, for as long as they are open, and then refuses everybody.
"""

import asyncio
import socket
import sys
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 10.0  # seconds for the head of a request [ours]
GRACE = 1.0  # seconds in which a connection may still send a request when the server stops [ours]
SPARE = 64  # file descriptors for all but connections [ours]
REFUSED = b'{"error": "too many connections: close some, or try again later"}'
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(REFUSED)).encode()),
    (b"connection", b"close"),
    (b"retry-after", b"1"),
]


def raise_file_limit(connections: int) -> tuple[int, int]:
    """Allow the process as many files as `connections` need. Return how many it can have, served and in all."""
    if sys.platform == "win32":  # has no such limit
        return connections, 16 * connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(soft, 16 * connections + SPARE)), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    in_all = (most if soft == resource.RLIM_INFINITY else soft) - SPARE
    return min(connections, max(in_all // 2, 1)), in_all


async def too_many(scope: Any, receive: Any, send: Any) -> None:
    """Refuse a request with 503, after its body was read: a reset would hide the answer from the client."""
    with suppress(TimeoutError):
        async with asyncio.timeout(HEAD):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.start", "status": 503, "headers": HEADERS})
    await send({"type": "http.response.body", "body": REFUSED})


def limited(most: int, in_all: int) -> type[H11Protocol]:
    """Return a protocol that serves `most` connections, refuses others with 503, and drops those beyond `in_all`."""

    class Limited(H11Protocol):
        head: asyncio.TimerHandle | None = None  # runs until a request has begun
        stopping = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # asyncio does so only where the listening socket names its protocol. Else the body of an answer waits for
            # the client to confirm the head, which takes 40 ms.
            accepted = transport.get_extra_info("socket")
            if accepted.family in (socket.AF_INET, socket.AF_INET6):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self.connections) > in_all:
                transport.abort()
            elif len(self.connections) > most:
                self.app = too_many
            self.head = self.loop.call_later(HEAD, self._close_unless_busy)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._busy():
                self._stop_head()
                if self.stopping:
                    self._end_with_this_answer()
            elif self.head is None and not self.transport.is_closing():
                self.head = self.loop.call_later(HEAD, self._close_unless_busy)

        def shutdown(self) -> None:
            """Let a request that is on its way arrive: closing now would lose it."""
            self.stopping = True
            if self._busy():
                self._end_with_this_answer()
            else:
                self.loop.call_later(GRACE, self._close_unless_busy)

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _end_with_this_answer(self) -> None:
            """Close the connection after the answer, which says so: else the client would send another request."""
            if not self.cycle.response_started:
                self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]
            self.cycle.keep_alive = False

        def _stop_head(self) -> None:
            if self.head is not None:
                self.head.cancel()
                self.head = None

        def _close_unless_busy(self) -> None:
            if not self._busy() and not self.transport.is_closing():
                self.transport.close()

    return Limited
