"""Twilio Media Streams, forked by `<Start><Stream>`: `/twilio`; docs/doors.md.

Twilio -> us; nothing goes back. Numbers are strings, `connected` has no streamSid:

{"event": "connected", "protocol": "Call", "version": "1.0.0"}
{"event": "start", "sequenceNumber": "1", "streamSid": "MZ..", "start": {"callSid": "CA..", "tracks": ["inbound", "outbound"],
    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}, "customParameters": {..}, ..}}
{"event": "media", "sequenceNumber": "3", "streamSid": "MZ..",
    "media": {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "<base64: 20 ms of mu-law>"}}
{"event": "dtmf" or "mark", ..}
{"event": "stop", "sequenceNumber": "202", "streamSid": "MZ..", "stop": {"accountSid": "AC..", "callSid": "CA.."}}

Source: https://www.twilio.com/docs/voice/media-streams/websocket-messages and, for the signature,
https://www.twilio.com/docs/usage/security.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from daemon import wire
from daemon.errors import PeerError
from daemon.stream import Ending
from daemon.transports.dialect import Command, Frame, Handshake, Refusal, Start
from daemon.transports.fork import Fork, ForkedCall
from daemon.transports.parameters import shown

_ENCODINGS: Final = {"audio/x-mulaw": "mulaw"}
_IGNORED: Final = ("connected", "dtmf", "mark")
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}
_SOCKET_SCHEMES: Final = {"http": "ws", "https": "wss"}


@dataclass(frozen=True, slots=True)
class TwilioAccess:
    """Who may fork calls to us.

    Attributes:
        auth_token: of the Twilio account, which signs every handshake; None lets anybody in.
        public_url: under which Twilio reaches us, where a proxy stands between; None for the URL of the handshake.
    """

    auth_token: str | None = None
    public_url: str | None = None


class TwilioDialect:
    """One connection; see `daemon.transports.dialect.Dialect`."""

    subprotocol: str | None = None
    idle_timeout_s: float | None = None
    client_closes = False

    def __init__(self, handshake: Handshake, access: TwilioAccess) -> None:
        self._handshake = handshake
        self._access = access
        self._call = ForkedCall(_begun, "sequenceNumber", _IGNORED)

    def refusal(self) -> Refusal | None:
        """403 where the signature is not the account's."""
        token = self._access.auth_token
        if token is None:
            return None
        try:
            url = seen_from_outside(self._handshake.url, self._access.public_url)
            signed = is_signed(url, self._handshake.headers.get("x-twilio-signature", ""), token)
        except ValueError as error:
            return Refusal(400, f"the Host header is no host and port: {error}")
        hint = "is telephony.public_url the address that Twilio uses?"
        return None if signed else Refusal(403, f"X-Twilio-Signature is not that of {url}: {hint}")

    def opening(self) -> Iterable[Command]:
        """Nothing: the stream is described in `start`."""
        return []

    def receive(self, frame: Frame) -> Iterable[Command]:
        """The next of Twilio's messages."""
        return self._call.receive(frame)

    def flush(self) -> Iterable[Command]:
        """What the tracks and the resamplers hold."""
        return self._call.flush()

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """Nothing: a fork is one-way."""
        return []

    def closing(self, ending: Ending) -> tuple[int, str]:
        """Our own codes; what was wrong is told nowhere else."""
        return ending.code, ending.reason


def _begun(start: Mapping[str, Any]) -> tuple[Fork, Start]:
    media = start.get("mediaFormat")
    encoding = media.get("encoding") if isinstance(media, dict) else None
    if (
        not isinstance(encoding, str)
        or encoding not in _ENCODINGS
        or media != {"encoding": encoding, "sampleRate": 8000, "channels": 1}
    ):
        raise PeerError(
            "bad_encoding", f"mediaFormat is {shown(media)}; Twilio sends audio/x-mulaw, 8000 Hz, 1 channel"
        )
    tracks = start.get("tracks")
    fork = Fork(tracks if isinstance(tracks, list) else [tracks], _ENCODINGS[encoding], 8000)
    return fork, fork.start(start.get("callSid"), start.get("customParameters") or {})


def seen_from_outside(url: str, public_url: str | None) -> str:
    """The URL as the client asked for it: that of the handshake, behind a proxy under the proxy's scheme, host and prefix."""
    if public_url is None:
        return url
    asked, public = urlsplit(url), urlsplit(public_url)
    scheme = _SOCKET_SCHEMES.get(public.scheme, public.scheme)
    return urlunsplit((scheme, public.netloc, public.path.rstrip("/") + asked.path, asked.query, ""))


def is_signed(url: str, signature: str, auth_token: str) -> bool:
    """Whether `signature` is that of `url`; compared in constant time.

    Twilio signs the URL as it was configured: with its default port or without, with a slash at its end or without.
    """
    given = signature.encode("utf-8", "replace")
    wanted = [hmac.new(auth_token.encode(), variant.encode(), hashlib.sha1).digest() for variant in _variants(url)]
    return any(hmac.compare_digest(base64.b64encode(digest), given) for digest in wanted)


def _variants(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    host, _, port = parts.netloc.rpartition(":") if parts.port is not None else (parts.netloc, "", "")
    default = _DEFAULT_PORTS.get(parts.scheme)
    netlocs = {parts.netloc}
    if default is not None and (not port or int(port) == default):
        netlocs |= {host, f"{host}:{default}"}
    for netloc in netlocs:
        for path in {parts.path, parts.path.rstrip("/"), parts.path.rstrip("/") + "/"}:
            yield urlunsplit((parts.scheme, netloc, path, parts.query, ""))
