"""Which pages may use the WHIP resource: our own, and those that the configuration names (Fetch standard, CORS protocol)."""

from collections.abc import Mapping
from typing import Final

EXPOSED: Final = "Location, ETag, Link"
_ALLOWED_HEADERS: Final = "Authorization, Content-Type, If-Match, Last-Event-ID"
_MAX_AGE_S: Final = 3600


class Origins:
    """The allow-list.

    Args:
        allowed: such as https://calls.example.org; "*" for every page.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._every = "*" in allowed
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)

    def refuses(self, headers: Mapping[str, str]) -> bool:
        """Whether the request comes from a page that may not; programs that are no browsers name no origin."""
        origin = headers.get("origin")
        return not (origin is None or self._every or _is_own(origin, headers) or origin.lower() in self._allowed)

    def headers(self, request: Mapping[str, str], methods: str) -> dict[str, str]:
        """What a browser wants to read before it lets a page see the response."""
        origin = request.get("origin")
        if origin is None or self.refuses(request):
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": "*" if self._every else origin,
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
            "Access-Control-Expose-Headers": EXPOSED,
            "Access-Control-Max-Age": str(_MAX_AGE_S),
        }


def _is_own(origin: str, headers: Mapping[str, str]) -> bool:
    scheme, _, host = origin.lower().partition("://")
    return scheme in ("http", "https") and host != "" and host == headers.get("host", "").lower()
