"""Hume's realtime expression measurement of audio: `/v1/expression/audio/realtime`; docs/doors.md.

client                                     server
                                           {"type": "session.created", "session_id": .., "audio": {..},
                                               "measurement_timer_ms": 3000}
{"type": "session.update", ..}       ->    {"type": "session.updated", ..}, before the first audio only
binary s16le, 16 kHz, mono           ->    {"type": "utterance.start", "utterance_id": 0, "audio_start_ms": 98}
                                           {"type": "measurement.result", "trigger": "interval", "expressions": [..], ..}
                                           {"type": "measurement.result", "trigger": "speech_ended", ..}
                                           {"type": "utterance.end", "utterance_id": 0, ..}
a frame that cannot be               ->    {"type": "error", "code": "invalid_audio_frame", "retryable": true}
{"type": "session.close"}            ->    the last results, {"type": "session.closed", "reason": ..,
                                               "received": {..}, "produced": {..}}

A subset: our eight emotions are the expressions, under Hume's names where it has them, and the whole of our result is in
`emotion`; a measurement spans its utterance so far; there are no voice attributes, and nothing is too fast.

Source: the public Python SDK of the service (hume-expression-measurement 0.1.0).
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final

from daemon import wire
from daemon.errors import CLOSE_UNSUPPORTED, PeerError
from daemon.request import StreamRequest, parse_object
from daemon.resample import AudioDecoder
from daemon.stream import Ending
from daemon.transports.dialect import Audio, Close, Command, Frame, Handshake, Refusal, Reply, Start
from daemon.transports.parameters import shown
from model.audio import SAMPLE_RATE_HZ

_AUDIO: Final = {"type": "audio/pcm", "encoding": "s16le", "sample_rate": SAMPLE_RATE_HZ, "channels": 1}
_LONGEST_FRAME: Final = 320_000
"""Bytes; ten seconds."""
_TIMER_MS: Final = 3000
_TIMERS_MS: Final = range(500, 10_001)
_NAMES: Final = {"angry": "anger", "sad": "sadness", "happy": "joy"}
_REASONS: Final = {"client_closed": "client_request", "going_away": "server_shutdown", "idle": "idle_timeout"}
_ERRORS: Final = {"config_invalid": "config_invalid", "too_big": "message_too_large"}


class HumeDialect:
    """One connection; see `daemon.transports.dialect.Dialect`."""

    subprotocol: str | None = None
    idle_timeout_s: float | None = None
    client_closes = False

    def __init__(self, handshake: Handshake) -> None:
        self._session = uuid.uuid4().hex
        self._decoder: AudioDecoder | None = None
        self._timer_ms = _TIMER_MS
        self._frames = 0
        self._measurements = 0
        self._utterance: int | None = None
        """Which is open, between its start and its end."""
        self._utterances = 0
        self._starts: list[float] = []
        """Of utterances that began before the one in front of them was measured; ms."""

    def refusal(self) -> Refusal | None:
        """None: the handshake asks for nothing."""
        return None

    def opening(self) -> Iterable[Command]:
        """The greeting; the stream begins with its first audio, for its configuration may come before."""
        return [_reply(type="session.created", session_id=self._session, **self._configuration())]

    def receive(self, frame: Frame) -> Iterator[Command]:
        """Audio or a word of control; what the session survives is answered at once."""
        if isinstance(frame, bytes):
            yield from self._audio(frame)
            return
        try:
            message = parse_object(frame)
        except PeerError as error:
            yield _error("message_invalid", error.message)
            return
        kind = message.get("type")
        if kind == "session.update":
            yield self._update(message)
        elif kind == "session.close":
            if self._decoder is None:
                yield Reply(self._closed("client_closed", 0, 0))
            yield Close()
        else:
            yield _error(
                "message_invalid", f"type {shown(kind)} is not known; there are session.update and session.close"
            )

    def flush(self) -> Iterable[Command]:
        """Nothing is held: 16 kHz is our own rate."""
        return []

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """As Hume says it: every measurement stands between the start and the end of its utterance."""
        kind = message["type"]
        if kind == "speech.started":
            self._starts.append(message["start_ms"])
            return self._begun() if self._utterance is None else []
        if kind == "emotion":
            return self._measured(message)
        if kind == "error" and message["code"] != "idle":
            code = _ERRORS.get(message["code"], "internal_error")
            return [_error(code, message["message"], retryable=False).frame]
        if kind == "session.closed":
            totals = message["totals"]
            return [self._closed(message["reason"], totals["received_ms"], totals["utterances"])]
        return []

    def closing(self, ending: Ending) -> tuple[int, str]:
        """Our own codes; the reason is in `session.closed`."""
        return ending.code, ""

    def _configuration(self) -> dict[str, Any]:
        return {"audio": _AUDIO, "measurement_timer_ms": self._timer_ms}

    def _update(self, message: dict[str, Any]) -> Command:
        audio, timer = message.get("audio"), message.get("measurement_timer_ms")
        if self._decoder is not None:
            raise PeerError("config_invalid", "session.update comes before the first audio", CLOSE_UNSUPPORTED)
        named = {} if audio is None else audio
        if not isinstance(named, dict) or any(named.get(name) not in (None, value) for name, value in _AUDIO.items()):
            raise PeerError("config_invalid", f"audio is {shown(audio)}; it must be {_AUDIO}", CLOSE_UNSUPPORTED)
        if timer is not None and (type(timer) is not int or timer not in _TIMERS_MS):
            least, most = _TIMERS_MS[0], _TIMERS_MS[-1]
            raise PeerError("config_invalid", f"measurement_timer_ms is {shown(timer)}; it lies in {least}..{most}")
        self._timer_ms = _TIMER_MS if timer is None else timer
        return _reply(type="session.updated", **self._configuration())

    def _audio(self, data: bytes) -> Iterator[Command]:
        if not data or len(data) % 2 or len(data) > _LONGEST_FRAME:
            yield _error(
                "invalid_audio_frame", f"a frame has an even number of bytes up to {_LONGEST_FRAME}, got {len(data)}"
            )
            return
        if self._decoder is None:
            self._decoder = AudioDecoder("linear16", SAMPLE_RATE_HZ, 1)
            yield Start(StreamRequest(interim_ms=self._timer_ms, call_id=self._session))
        self._frames += 1
        yield Audio(self._decoder.decode(data))

    def _begun(self) -> list[Frame]:
        """The next utterance that waits to begin."""
        if not self._starts:
            return []
        self._utterance = self._utterances
        start_ms = round(self._starts.pop(0))
        return [json.dumps({"type": "utterance.start", "utterance_id": self._utterance, "audio_start_ms": start_ms})]

    def _measured(self, message: wire.Message) -> list[Frame]:
        frames: list[Frame] = []
        if self._utterance is None:  # speech that went on behind a cut began without a word
            self._starts.append(message["start_ms"])
            frames += self._begun()
        span = {"utterance_id": self._utterance, "audio_start_ms": round(message["start_ms"])}
        span["audio_end_ms"] = round(message["end_ms"])
        trigger = "speech_ended" if message["final"] else "interval"
        result = {"type": "measurement.result", "measurement_id": self._measurements, **span, "trigger": trigger}
        result |= {"expressions": _expressions(message["probabilities"]), "voice_attributes": []}
        result["emotion"] = {name: value for name, value in message.items() if name not in ("type", "seq")}
        self._measurements += 1
        frames.append(json.dumps(result, ensure_ascii=False))
        if message["final"]:
            self._utterances += 1
            self._utterance = None
            frames += [json.dumps({"type": "utterance.end", **span}), *self._begun()]
        return frames

    def _closed(self, reason: str, received_ms: float, utterances: int) -> str:
        return json.dumps(
            {
                "type": "session.closed",
                "session_id": self._session,
                "reason": _REASONS.get(reason, "error"),
                "received": {"audio_duration_ms": round(received_ms), "frames": self._frames},
                "produced": {"utterances": utterances, "measurements": self._measurements},
            }
        )


def _expressions(probabilities: dict[str, float]) -> list[dict[str, Any]]:
    """Probable ones first; classes that the bundle never learned are left out."""
    found = [(-p, _NAMES.get(name, name)) for name, p in probabilities.items() if p > 0]
    return [{"name": name, "probability": round(-p, 4)} for p, name in sorted(found)]


def _reply(**message: Any) -> Reply:
    return Reply(json.dumps(message))


def _error(code: str, text: str, *, retryable: bool = True) -> Reply:
    return _reply(type="error", code=code, message=text, retryable=retryable)
