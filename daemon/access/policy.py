"""What each request needs: a role under `/api`, `/whip`, `/metrics` and `/v1` and for every WebSocket, nothing for pages."""

import enum
from collections.abc import Mapping
from typing import Final, Literal

from daemon.access.principal import Role

NATIVE: Final = "/v1/stream"
TOKEN: Final = "/v1/token"
SESSION: Final = "/v1/session"

SIGNED: Final[Mapping[str, str]] = {
    "/audiohook": "telephony.audiohook_keys",
    "/telnyx": "telephony.telnyx_auth_token",
    "/twilio": "telephony.twilio_auth_token",
}
"""Doors whose clients sign instead of showing a key of ours -> what must be configured for that."""

_GUARDED: Final = ("/api", "/whip", "/metrics", "/v1")
_READING: Final = ("GET", "HEAD")


class Special(enum.Enum):
    """What is no role."""

    OPEN = enum.auto()
    """Pages, health: nothing that anybody said."""
    ANY_ROLE = enum.auto()
    """Somebody who is recognised; the handler looks at the roles."""
    SIGNED_DOOR = enum.auto()
    """A signature, which the door itself verifies."""


Need = Role | Special


def need(kind: Literal["http", "websocket"], method: str, path: str) -> Need:
    """What a request needs.

    Args:
        kind: of the request.
        method: of HTTP; any for a WebSocket.
        path: decoded, as it is routed.
    """
    if kind == "websocket":
        return Special.SIGNED_DOOR if path in SIGNED else "ingest"
    if method == "OPTIONS":
        return Special.OPEN  # a preflight has no credentials, and no answer to it tells anything
    if not is_guarded(kind, method, path):
        return Special.OPEN
    if path == SESSION:
        return Special.ANY_ROLE if method == "POST" else Special.OPEN
    if path == TOKEN:
        return Special.ANY_ROLE
    if _under(path, "/metrics"):
        return "metrics"
    if _under(path, "/whip") or (_under(path, "/v1") and method in _READING):
        return "ingest"
    return "read" if method in _READING else "admin"


def is_guarded(kind: Literal["http", "websocket"], method: str, path: str) -> bool:
    """Whether a request is for more than a page; pages are only read."""
    more = kind == "websocket" or method not in (*_READING, "OPTIONS")
    return more or any(_under(path, prefix) for prefix in _GUARDED)


def is_whip(kind: Literal["http", "websocket"], path: str) -> bool:
    """Whether a request is WHIP's, which has origins of its own."""
    return kind == "http" and _under(path, "/whip")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")
