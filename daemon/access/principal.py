"""Somebody who was recognised, and the error for who was not."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from daemon.errors import CLOSE_POLICY, PeerError

Role = Literal["ingest", "read", "admin", "metrics"]
"""ingest: stream. read: see calls. admin: delete them, change the bundle. metrics: scrape `/metrics`.

None of them includes another.
"""

ROLES: Final[tuple[Role, ...]] = get_args(Role)

Kind = Literal["key", "jwt", "token", "session", "door", "anyone"]
"""How somebody was recognised; `token` and `session` are what we minted ourselves."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one principal may take; None is no limit.

    Attributes:
        streams: at a time.
        starts_per_minute: streams that begin.
        stream_s: seconds of audio in one stream.
        day_s: seconds of audio from midnight to midnight, UTC.
    """

    streams: int | None = None
    starts_per_minute: int | None = None
    stream_s: float | None = None
    day_s: float | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        name: of the key, or `jwt:` and the subject.
        roles: that it has.
        limits: of its streams.
        kind: how it was recognised.
        expires_at: seconds since the epoch, None for never.
    """

    name: str
    roles: frozenset[Role]
    limits: Limits = Limits()
    kind: Kind = "key"
    expires_at: float | None = None


ANYONE: Final = Principal("anyone", frozenset(ROLES), kind="anyone")
"""Everybody, where no access is configured."""


class AccessError(PeerError):
    """Somebody may not do what they ask for.

    Args:
        status: HTTP status code.
        code: short machine-readable name.
        message: what was wrong, and what would be right; never the credential.
        retry_after_s: when to come back, for 429.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(code, message, CLOSE_POLICY)
        self.status = status
        self.retry_after_s = retry_after_s
