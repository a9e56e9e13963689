"""Telnyx media streaming: `/telnyx`; docs/doors.md.

Telnyx -> us; nothing goes back. As Twilio's, in snake_case; media messages may overtake each other:

{"event": "connected", "version": "1.0.0"}
{"event": "start", "sequence_number": "1", "stream_id": "32DE..", "start": {"call_control_id": "v3:..",
    "custom_parameters": {..}, "media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1}, ..}}
{"event": "media", "sequence_number": "4", "stream_id": "32DE..",
    "media": {"track": "inbound", "chunk": "2", "timestamp": "20", "payload": "<base64>"}}
{"event": "dtmf", "mark" or "error", ..}
{"event": "stop", "sequence_number": "5", "stream_id": "32DE..", "stop": {"call_control_id": "v3:.."}}

`start` does not name the tracks: both are awaited unless the parameter `tracks` says inbound or outbound; one that never
speaks is silent.

Source: https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
"""

import hmac
from collections.abc import Iterable
from typing import Final

from daemon import wire
from daemon.errors import CLOSE_UNSUPPORTED, PeerError
from daemon.request import parse_object
from daemon.streams import Ending
from daemon.transports.dialect import Close, Command, Frame, Handshake, Refusal
from daemon.transports.fork import TRACK_ROLES, Fork
from daemon.transports.parameters import number, shown, texts

_ENCODINGS: Final = {"PCMU": "mulaw", "PCMA": "alaw"}
_IGNORED: Final = ("connected", "dtmf", "mark", "error")
_REORDER_S: Final = 0.2


class TelnyxDialect:
    """One connection; see `daemon.transports.dialect.Dialect`.

    Args:
        handshake: of the connection.
        auth_token: that Telnyx was told to show (`stream_auth_token`); None lets anybody in.
    """

    subprotocol: str | None = None
    idle_timeout_s: float | None = None
    client_closes = False

    def __init__(self, handshake: Handshake, auth_token: str | None) -> None:
        self._handshake = handshake
        self._auth_token = auth_token
        self._fork: Fork | None = None

    def refusal(self) -> Refusal | None:
        """403 where the token is not the one that was agreed on."""
        shows = self._handshake.headers.get("x-telnyx-streaming-auth-token", "")
        if self._auth_token is None or hmac.compare_digest(shows.encode(), self._auth_token.encode()):
            return None
        return Refusal(403, "x-telnyx-streaming-auth-token is not telephony.telnyx_auth_token")

    def opening(self) -> Iterable[Command]:
        """Nothing: the stream is described in `start`."""
        return []

    def receive(self, frame: Frame) -> Iterable[Command]:
        """The next of Telnyx' messages."""
        if isinstance(frame, bytes):
            raise PeerError("bad_media", "audio is base64 in media.payload; a binary message has no meaning here")
        message = parse_object(frame)
        event = message.get("event")
        if event in _IGNORED:
            return []
        if event == "start":
            return [self._start(message.get("start"))]
        if self._fork is None:
            raise PeerError("bad_start", f"event {shown(event)} came before start")
        if event == "media":
            return self._fork.media(message.get("media"), message.get("sequence_number"))
        if event == "stop":
            return [Close()]
        raise PeerError("bad_type", f"event {shown(event)} is not known; there are start, media, dtmf, mark and stop")

    def flush(self) -> Iterable[Command]:
        """What the tracks and the resamplers hold."""
        return [] if self._fork is None else self._fork.flush()

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """Nothing: Telnyx would play what we say to the caller."""
        return []

    def closing(self, ending: Ending) -> tuple[int, str]:
        """Our own codes; what was wrong is told nowhere else."""
        return ending.code, ending.reason

    def _start(self, start: object) -> Command:
        if self._fork is not None:
            raise PeerError("bad_start", "start came twice")
        if not isinstance(start, dict):
            raise PeerError("bad_start", f"start is {shown(start)}; it must be an object")
        media = start.get("media_format")
        encoding = media.get("encoding") if isinstance(media, dict) else None
        if not isinstance(media, dict) or not isinstance(encoding, str) or encoding not in _ENCODINGS:
            raise PeerError(
                "bad_encoding",
                f"media_format is {shown(media)}; ask Telnyx for the codec PCMU or PCMA",
                CLOSE_UNSUPPORTED,
            )
        parameters = texts(start.get("custom_parameters") or {})
        wanted = parameters.pop("tracks", "both")
        tracks = list(TRACK_ROLES) if wanted == "both" else [wanted]
        rate = number(media.get("sample_rate"), "media_format.sample_rate")
        fork = Fork(tracks, _ENCODINGS[encoding], rate, _REORDER_S)
        command = fork.start(start.get("call_control_id"), parameters)
        self._fork = fork
        return command
