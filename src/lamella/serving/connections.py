"""An HTTP connection that is closed when its client stays idle."""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["IdleTimeout"]

SECONDS = 30.0


class IdleTimeout(H11Protocol):
    """Closes a connection on which no request begins within 30 seconds.

    Without this, a client could open many idle connections and keep other clients out. A request has begun when its
    headers have arrived; `gate.py` limits the time for its body.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # An answer is two writes, headers and body. Without this the system keeps the second back until the client has
        # acknowledged the first, which clients delay by up to 40 ms. asyncio itself sets it only for sockets that were
        # made with TCP's protocol number, which `socket.create_server` leaves at 0.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect_a_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_a_request()

    def _expect_a_request(self) -> None:
        self.loop.call_later(SECONDS, self._close_unless_asked, self.cycle)

    def _close_unless_asked(self, before: Any) -> None:
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()
