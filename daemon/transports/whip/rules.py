"""What the configuration says about WHIP; needs nothing of WebRTC itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server.

    Attributes:
        urls: such as stun:stun.example.org:3478 or turn:turn.example.org?transport=udp.
        username: for TURN.
        credential: for TURN.
    """

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None


@dataclass(frozen=True, slots=True)
class WhipRules:
    """What sessions share.

    Attributes:
        ice_servers: ours, and told to clients.
        public_address: IPv4 address that clients reach us by, where it is not our machine's own.
        allowed_origins: of pages that are not ours; "*" for all.
    """

    ice_servers: tuple[IceServer, ...] = ()
    public_address: str | None = None
    allowed_origins: tuple[str, ...] = ()
