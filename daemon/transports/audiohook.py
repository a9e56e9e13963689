"""Genesys AudioHook, version 2: `/audiohook`; docs/doors.md.

Every text message is {"version": "2", "type": .., "id": <session>, "seq": 1.., "parameters": {..}}, the client's with
"serverseq" and "position" ("PT12.5S" of audio), ours with "clientseq". Binary messages are audio, both channels interleaved.

state        client                              server                          then
-----------  ----------------------------------  ------------------------------  ---------
PREPARING    open, all ids zero                  opened                          PROBED
PREPARING    open {conversationId, media ..}     opened {media: [one of them]}   OPEN
OPEN         audio                                                               OPEN
OPEN         paused                                                              PAUSED
PAUSED       resumed {start, discarded}          (silence on the audio clock)    OPEN
OPEN PAUSED  discarded {start, discarded}        (silence on the audio clock)    the same
any          ping                                pong                            the same
any          update, error                                                       the same
OPEN PAUSED  close                               closed, once all is scored      ENDED
any          a mistake, or the end of us         disconnect {reason}             ENDED
PROBED ENDED close                               closed                          ENDED

external is the customer, internal the agent. Results are in Redis, under the conversation's id.

Source: https://developer.genesys.cloud/devapps/audiohook/protocol-reference
"""

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from daemon import wire
from daemon.errors import CLOSE_POLICY, PeerError
from daemon.request import StreamRequest, parse_object
from daemon.resample import AudioDecoder
from daemon.stream import Ending
from daemon.transports.audiohook_envelope import Envelope, seconds
from daemon.transports.audiohook_signature import AudioHookKeys
from daemon.transports.dialect import Audio, Close, Command, Frame, Handshake, Refusal, Reply, Start
from daemon.transports.parameters import request_of, shown, texts

_ROLES: Final = {"external": "customer", "internal": "agent"}
_FORMATS: Final = {"PCMU": ("mulaw", b"\xff"), "L16": ("linear16", b"\0\0")}
_RATE_HZ: Final = 8000
_PREFERRED: Final[list[dict[str, Any]]] = [
    {"type": "audio", "format": format, "channels": channels, "rate": _RATE_HZ}
    for channels in (["external", "internal"], ["external"], ["internal"])
    for format in _FORMATS
]
_REFUSED_AFTER_S: Final = 0.5
"""Whatever is wrong with a signature, the answer comes at this time, which so tells nothing."""
_LONGEST_SLACK_S: Final = 60.0
"""How much more audio a client may say it left out than time has passed."""
_SILENCE_S: Final = 1
"""Silence is made in pieces: a pause can last for an hour."""
_NO_ID: Final = re.compile(r"[0-]+")
_HONOURED: Final = ("language", "roles", "interim_ms")


class _State(enum.Enum):
    PREPARING = enum.auto()
    PROBED = enum.auto()
    OPEN = enum.auto()
    PAUSED = enum.auto()
    ENDED = enum.auto()


class AudioHookDialect:
    """One connection; see `daemon.transports.dialect.Dialect`.

    Args:
        handshake: of the connection.
        keys: who may connect.
        clock: seconds, of any epoch.
    """

    subprotocol: str | None = None
    idle_timeout_s: float | None = None
    client_closes = True

    def __init__(self, handshake: Handshake, keys: AudioHookKeys, clock: Callable[[], float]) -> None:
        self._handshake = handshake
        self._keys = keys
        self._clock = clock
        self._began = clock()
        self._state = _State.PREPARING
        self._envelope = Envelope(handshake.headers.get("audiohook-session-id"))
        self._media: dict[str, Any] | None = None
        self._decoder: AudioDecoder | None = None
        self._silence = b""
        self._position = 0
        """Samples of the wire."""
        self._asked_to_close = False

    def refusal(self) -> Refusal | None:
        """401 where the handshake is not signed by who may connect."""
        problem = self._keys.problem(self._handshake)
        return None if problem is None else Refusal(401, problem, _REFUSED_AFTER_S)

    def opening(self) -> Iterable[Command]:
        """Nothing: the stream is described in `open`."""
        return []

    def receive(self, frame: Frame) -> Iterator[Command]:
        """The next of the client's messages; see the table."""
        if isinstance(frame, bytes):
            yield self._audio(frame)
            return
        kind, parameters = self._envelope.opened(parse_object(frame))
        if kind == "open" and self._state is _State.PREPARING:
            yield from self._open(parameters)
        elif kind == "ping":
            yield Reply(self._envelope.wrapped("pong"))
        elif kind == "close":
            yield from self._close()
        elif kind == "paused" and self._state is _State.OPEN:
            self._state = _State.PAUSED
        elif kind in ("resumed", "discarded") and self._state in (_State.OPEN, _State.PAUSED):
            if kind == "resumed":
                self._state = _State.OPEN
            yield from self._gap(parameters)
        elif kind not in ("update", "error", "paused", "resumed", "discarded"):
            raise PeerError("bad_type", f"message {shown(kind)} has no place in state {self._state.name}")

    def flush(self) -> Iterable[Command]:
        """The samples that the resamplers hold."""
        return [] if self._decoder is None else [Audio(self._decoder.flush())]

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """`opened`, `closed` and `disconnect`; results are in Redis."""
        kind = message["type"]
        if kind == "session.created":
            return [self._envelope.wrapped("opened", {"media": [self._media], "startPaused": False})]
        if kind == "error":
            return self._disconnect(message["code"], message["message"])
        if kind == "session.closed" and self._asked_to_close:
            return [self._envelope.wrapped("closed")]
        if kind == "session.closed":
            return self._disconnect(message["reason"], message["reason"])
        return []

    def closing(self, ending: Ending) -> tuple[int, str]:
        """Our own codes."""
        return ending.code, ending.reason

    def _open(self, parameters: dict[str, Any]) -> Iterator[Command]:
        conversation, participant = parameters.get("conversationId"), parameters.get("participant")
        ids = [conversation, participant.get("id") if isinstance(participant, dict) else None]
        offered = parameters.get("media")
        offered = offered if isinstance(offered, list) else []
        self._media = next((media for media in _PREFERRED if media in offered), None)
        if all(isinstance(each, str) and _NO_ID.fullmatch(each) for each in ids):
            self._state = _State.PROBED
            yield Reply(
                self._envelope.wrapped("opened", {"media": [self._media] if self._media else [], "startPaused": False})
            )
            return
        organization = self._handshake.headers.get("audiohook-organization-id")
        if organization not in (None, parameters.get("organizationId")):
            raise PeerError("unauthorized", "organizationId is not that of the handshake", CLOSE_POLICY)
        if self._media is None:
            raise PeerError(
                "bad_media", f"no media of {shown(offered)} is taken: offer PCMU or L16, 8000 Hz, external and internal"
            )
        start = Start(self._request(conversation, parameters, self._media))
        encoding, silence = _FORMATS[self._media["format"]]
        channels = len(self._media["channels"])
        self._decoder = AudioDecoder(encoding, _RATE_HZ, channels)
        self._silence = silence * channels
        self._state = _State.OPEN
        yield start

    def _request(self, conversation: object, parameters: dict[str, Any], media: dict[str, Any]) -> StreamRequest:
        config = parameters.get("customConfig")
        own = (
            {name: value for name, value in config.items() if isinstance(value, str)}
            if isinstance(config, dict)
            else {}
        )
        given = texts(own)
        honoured: dict[str, str] = {name: given.pop(name) for name in _HONOURED if name in given}
        language = parameters.get("language")
        known = {
            "channels": len(media["channels"]),
            "roles": [_ROLES[channel] for channel in media["channels"]],
            "call_id": conversation,
            "language": language.partition("-")[0].lower() if isinstance(language, str) else None,
            "metadata": given,
        }
        return request_of(known, honoured)

    def _audio(self, data: bytes) -> Command:
        if self._state is not _State.OPEN or self._decoder is None:
            raise PeerError("bad_state", f"audio has no place in state {self._state.name}")
        audio = Audio(self._decoder.decode(data))
        self._position += len(data) // len(self._silence)
        return audio

    def _gap(self, parameters: dict[str, Any]) -> Iterator[Command]:
        """Silence for what the client left out, so that the audio clock goes on."""
        end = seconds(parameters.get("start"), "start") + seconds(parameters.get("discarded"), "discarded")
        missing = round(end * _RATE_HZ) - self._position
        most = round((self._clock() - self._began + _LONGEST_SLACK_S) * _RATE_HZ) - self._position
        if missing > most:
            raise PeerError("bad_gap", f"audio up to {float(end):g} s cannot have been left out yet")
        decoder = self._decoder
        while missing > 0 and decoder is not None:
            count = min(missing, _SILENCE_S * _RATE_HZ)
            missing -= count
            self._position += count
            yield Audio(decoder.decode(self._silence * count))

    def _close(self) -> Iterator[Command]:
        if self._asked_to_close:
            return
        self._asked_to_close = True
        state, self._state = self._state, _State.ENDED
        if state not in (_State.OPEN, _State.PAUSED):
            yield Reply(self._envelope.wrapped("closed"))
        if state is not _State.ENDED:
            yield Close()

    def _disconnect(self, code: str, info: str) -> list[Frame]:
        """Asks the client to close; once."""
        if self._state is _State.ENDED:
            return []
        self._state = _State.ENDED
        reason = {"unauthorized": "unauthorized", "going_away": "completed"}.get(code, "error")
        return [self._envelope.wrapped("disconnect", {"reason": reason, "info": info})]
