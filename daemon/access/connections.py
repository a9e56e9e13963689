"""Connections that do not say what they want: one that has not sent a whole request head in time is closed.

uvicorn limits how long an answered connection may be idle, but not how slowly a head may come: a byte now and then would hold
a connection for ever (slowloris).
"""

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def timed(within_s: float) -> type[H11Protocol]:
    """uvicorn's protocol with that limit.

    Args:
        within_s: from the connection, or from the first byte behind an answer, to the end of the request's head.
    """

    class TimedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
            super().connection_made(transport)
            self._set_deadline()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._awaits_head():
                if self._deadline is None:
                    self._set_deadline()
            else:
                self._clear_deadline()

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._clear_deadline()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._clear_deadline()
            super().connection_lost(exc)

        def _awaits_head(self) -> bool:
            between: Any = self.conn.their_state
            return between is h11.IDLE and self.transport.get_protocol() is self and not self.transport.is_closing()

        def _set_deadline(self) -> None:
            self._deadline = self.loop.call_later(within_s, self._too_slow)

        def _clear_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._deadline = None
            if self._awaits_head():
                self.transport.write(_TOO_SLOW)
                self.transport.close()

    return TimedProtocol
