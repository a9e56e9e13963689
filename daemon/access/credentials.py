"""Where a credential may stand in a request, and where it must not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

COOKIE: Final = "medusa_session"
"""Of our own pages; see `daemon.access.routes`."""

_SCHEMES: Final = ("token", "bearer")
"""In `Authorization`; browsers, which cannot set headers of a WebSocket, offer them as a pair of subprotocols."""
_NOT_IN_URLS: Final = {"token", "accesstoken", "apikey", "key", "jwt", "bearer", "auth", "authorization", "secret"}
"""Names of query parameters, without `_` and `-`, that would put a credential into logs and histories."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a client shows.

    Attributes:
        text: the key or token.
        by_cookie: whether its browser added it by itself, whatever page asked for it.
    """

    text: str
    by_cookie: bool = False

    def __repr__(self) -> str:
        return "Shown(...)"


def shown(headers: Mapping[str, str], subprotocols: Sequence[str] = ()) -> Shown | None:
    """The credential of a request, None if there is none.

    Args:
        headers: names in lower case.
        subprotocols: that a WebSocket offers.
    """
    if (text := explicit(headers, subprotocols)) is not None:
        return Shown(text)
    cookie = _cookie(headers.get("cookie", ""))
    return Shown(cookie, by_cookie=True) if cookie else None


def explicit(headers: Mapping[str, str], subprotocols: Sequence[str] = ()) -> str | None:
    """The key or token that a client shows on purpose; cookies are not."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() in _SCHEMES and token.strip():
        return token.strip()
    if key := headers.get("x-hume-api-key"):
        return key
    return subprotocols[1] if offered_scheme(subprotocols) else None


def offered_scheme(subprotocols: Sequence[str]) -> str | None:
    """The first of a pair of subprotocols of which the second is a credential: what the server must answer."""
    return subprotocols[0] if len(subprotocols) == 2 and subprotocols[0].lower() in _SCHEMES else None


def in_url(query: bytes) -> str | None:
    """The name of a query parameter that holds a credential; None if none does."""
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower().replace("_", "").replace("-", "") in _NOT_IN_URLS:
            return name
    return None


def _cookie(header: str) -> str | None:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return None
