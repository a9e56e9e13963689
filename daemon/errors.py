"""What can go wrong at run time. The four kinds differ because their handling differs.

DaemonError
|-- ConfigError       the operator's configuration cannot work: printed whole, the process does not start
|-- PeerError         a client broke the protocol: it is told, its connection is closed, nobody else notices
|-- CapacityError     the server is full: the client is told to come back (1013), nothing was accepted
`-- UpstreamError     a service behind us failed (Redis, a model): retried, and reported by readiness
"""

from typing import Final

CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_UNSUPPORTED: Final = 1003
CLOSE_BAD_DATA: Final = 1007
CLOSE_POLICY: Final = 1008
CLOSE_TOO_BIG: Final = 1009
CLOSE_INTERNAL: Final = 1011
CLOSE_OVERLOADED: Final = 1013


class DaemonError(Exception):
    """Base of every error that the daemon raises on purpose."""


class ConfigError(DaemonError):
    """The configuration cannot work."""


class PeerError(DaemonError):
    """The client broke the protocol.

    Args:
        code: short machine-readable name, for instance "bad_encoding".
        message: what was wrong, the value, and what would be right.
        close_code: WebSocket close code (RFC 6455, 7.4.1).
    """

    def __init__(self, code: str, message: str, close_code: int = CLOSE_BAD_DATA) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.close_code = close_code


class CapacityError(DaemonError):
    """No room: the client may come back later."""


class UpstreamError(DaemonError):
    """A service that the daemon needs failed."""
