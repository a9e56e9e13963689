"""The trace that a client's request belongs to, as its header `traceparent` says (W3C Trace Context)."""

from contextvars import ContextVar
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

_CARRIER: Final[ContextVar[dict[str, str] | None]] = ContextVar("trace carrier", default=None)
_HEADERS: Final = ("traceparent", "tracestate")


def carrier() -> dict[str, str]:
    """The headers of the request that is being served, as far as they are about traces."""
    return _CARRIER.get() or {}


class TraceparentMiddleware:
    """ASGI middleware: whatever serves a request or WebSocket finds its trace in `carrier`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            _CARRIER.set({name: headers[name] for name in _HEADERS if name in headers})
        await self._app(scope, receive, send)
