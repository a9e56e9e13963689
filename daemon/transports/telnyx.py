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
from collections.abc import Iterable, Mapping
from typing import Any, Final

from daemon import wire
from daemon.errors import CLOSE_UNSUPPORTED, PeerError
from daemon.stream import Ending
from daemon.transports.dialect import Command, Frame, Handshake, Refusal, Start
from daemon.transports.fork import TRACK_ROLES, Fork, ForkedCall
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
        self._call = ForkedCall(_begun, "sequence_number", _IGNORED)

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
        return self._call.receive(frame)

    def flush(self) -> Iterable[Command]:
        """What the tracks and the resamplers hold."""
        return self._call.flush()

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """Nothing: Telnyx would play what we say to the caller."""
        return []

    def closing(self, ending: Ending) -> tuple[int, str]:
        """Our own codes; what was wrong is told nowhere else."""
        return ending.code, ending.reason


def _begun(start: Mapping[str, Any]) -> tuple[Fork, Start]:
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
    return fork, fork.start(start.get("call_control_id"), parameters)
