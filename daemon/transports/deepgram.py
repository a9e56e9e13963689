"""Deepgram's live protocol: `/v1/listen?encoding=linear16&sample_rate=16000&...`; docs/doors.md.

client                                     server
GET, parameters in the query         ->    400 and the reason, or the stream begins
binary audio, cut anywhere           ->    {"type": "SpeechStarted", "channel": [0, 1], "timestamp": 0.4}    vad_events
                                           {"type": "Results", "channel_index": [0, 1], "start": 0.4, "duration": 1.9,
                                               "is_final": true, "speech_final": true, "from_finalize": false,
                                               "channel": {"alternatives": [{"transcript": "..", "confidence": 1.0, "words": [],
                                                   "emotion": {"top": "angry", "probabilities": {..}, ..}}]}, "metadata": {..}}
                                           {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 2.2}   utterance_end_ms
{"type": "KeepAlive"}                ->
{"type": "Finalize"}                 ->    Results of what was said so far, from_finalize
{"type": "CloseStream"}              ->    the last Results, {"type": "Metadata", "duration": .., "request_id": ..}, close 1000

Times are seconds on the audio's own clock. Interim results hold an emotion and no words; no result holds word times.

Source: https://developers.deepgram.com/reference/speech-to-text/listen-streaming
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from daemon import wire
from daemon.errors import CLOSE_INTERNAL, PeerError
from daemon.request import parse_object
from daemon.resample import ENCODINGS, AudioDecoder
from daemon.stream import Ending
from daemon.transports.deepgram_query import Asked, read_query
from daemon.transports.dialect import Audio, Close, Command, Finalize, Frame, Handshake, Refusal, Reply, Start
from daemon.transports.parameters import shown
from model.audio import MAX_UTTERANCE, POST_PAD, VAD_WINDOW, ms_from_samples
from model.segmenter import Endpointing

_EMOTION: Final = (
    *("top", "confidence", "probabilities", "arousal", "valence", "dominance", "uncertainty", "abstained"),
    *("role", "text_trusted", "event_id"),
)
_EMOTION_IF_THERE: Final = ("modality_share", "members_used")
_FINALIZED: Final = 16
_FORCED_MS: Final = ms_from_samples(MAX_UTTERANCE - POST_PAD)
"""Speech that is cut at this length goes on behind the cut."""


class DeepgramDialect:
    """One connection; see `daemon.transports.dialect.Dialect`.

    Args:
        handshake: of the connection.
        endpointing: the server's own rules; the query may ask for another silence.
    """

    idle_timeout_s: float | None = 10.0
    client_closes = False

    def __init__(self, handshake: Handshake, endpointing: Endpointing) -> None:
        self.subprotocol = handshake.subprotocols[0] if handshake.subprotocols else None
        self._asked: Asked | PeerError
        try:
            self._asked = read_query(handshake.query, endpointing)
            request = self._asked.request
            self._decoder = AudioDecoder(request.encoding, request.sample_rate, request.channels)
            self._frame = ENCODINGS[request.encoding] * request.channels
        except PeerError as error:
            self._asked = error
        self._created = datetime.now(UTC)
        self._sha256 = hashlib.sha256()
        self._rest = b""
        self._received = 0
        self._finalized: deque[int] = deque(maxlen=_FINALIZED)
        self._session = wire.Message()
        self._ended: dict[int, float] = {}
        """Channel -> where its speech ended, while no UtteranceEnd was said of it; ms."""
        self._started: dict[int, float] = {}

    def refusal(self) -> Refusal | None:
        """400 where the query asks for what cannot be."""
        return Refusal(400, self._asked.message) if isinstance(self._asked, PeerError) else None

    def opening(self) -> Iterable[Command]:
        """The stream: the query says it all."""
        asked = self._parameters
        request = asked.request.model_copy(update={"channels": 1}) if asked.mixed else asked.request
        return [Start(request, asked.endpointing)]

    def receive(self, frame: Frame) -> Iterable[Command]:
        """Audio or a word of control; an empty message closes, as with Deepgram."""
        if isinstance(frame, str):
            return self._control(frame)
        return self._audio(frame) if frame else [Close()]

    def flush(self) -> Iterable[Command]:
        """The samples that the resamplers hold."""
        return [self._mixed(self._decoder.flush())]

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """As Deepgram says it."""
        return [json.dumps(each, separators=(",", ":"), ensure_ascii=False) for each in self._said(message)]

    def closing(self, ending: Ending) -> tuple[int, str]:
        """Deepgram's codes where it has one."""
        if ending.reason == "idle":
            return CLOSE_INTERNAL, "NET-0001: neither audio nor KeepAlive for 10 s"
        return ending.code, ending.reason

    @property
    def _parameters(self) -> Asked:
        if isinstance(self._asked, PeerError):
            raise self._asked
        return self._asked

    def _control(self, text: str) -> list[Command]:
        kind = parse_object(text).get("type")
        if kind == "KeepAlive":
            return []
        if kind == "Finalize":
            self._finalized.append(self._received // VAD_WINDOW * VAD_WINDOW)
            return [Finalize()]
        if kind == "CloseStream":
            return [Close()]
        raise PeerError(
            "bad_type", f"message type {shown(kind)} is not known; there are KeepAlive, Finalize and CloseStream"
        )

    def _audio(self, data: bytes) -> Iterator[Command]:
        self._sha256.update(data)
        data = self._rest + data
        whole = len(data) - len(data) % self._frame
        self._rest = data[whole:]
        audio = self._mixed(self._decoder.decode(data[:whole]))
        self._received += len(audio.channels[0])
        yield audio
        for said in self._utterance_ends():
            yield Reply(json.dumps(said))

    def _mixed(self, channels: list[Any]) -> Audio:
        return Audio([np.mean(channels, axis=0, dtype=np.float32)] if self._parameters.mixed else channels)

    def _said(self, message: wire.Message) -> Iterator[dict[str, Any]]:
        kind = message["type"]
        if kind == "session.created":
            self._session = message
        elif kind == "speech.started":
            self._started[message["channel"]] = message["start_ms"]
            if self._parameters.vad_events:
                yield {
                    "type": "SpeechStarted",
                    "channel": self._index(message["channel"]),
                    "timestamp": message["start_ms"] / 1000,
                }
        elif kind == "emotion":
            result = self._result(message)
            yield result
            if result["speech_final"]:
                self._ended[message["channel"]] = message["end_ms"] - ms_from_samples(POST_PAD)
                yield from self._utterance_ends()
        elif kind == "error":
            yield {"type": "Error", "variant": message["code"], "description": message["message"]}
        elif kind == "session.closed":
            yield self._metadata(message)

    def _result(self, message: wire.Message) -> dict[str, Any]:
        """`Results` of one utterance. An utterance that was cut because it was too long has not ended its speech."""
        start_ms, end_ms, final = message["start_ms"], message["end_ms"], message["final"]
        decided_ms = end_ms + message["latency_ms"]["endpoint"]
        from_finalize = final and any(abs(ms_from_samples(at) - decided_ms) < 1 for at in self._finalized)
        ends = from_finalize or (self._parameters.ends_speech and decided_ms - start_ms < _FORCED_MS)
        alternative: dict[str, Any] = {
            "transcript": message["text"] or "",
            "confidence": float(bool(message["text_trusted"] and message["text"])),
            "words": [],
            "emotion": {name: message[name] for name in _EMOTION}
            | {name: message[name] for name in _EMOTION_IF_THERE if name in message},
        }
        return {
            "type": "Results",
            "channel_index": self._index(message["channel"]),
            "duration": round((end_ms - start_ms) / 1000, 6),
            "start": start_ms / 1000,
            "is_final": final,
            "speech_final": bool(final and ends),
            "from_finalize": from_finalize,
            "channel": {"alternatives": [alternative]},
            "metadata": {
                "request_id": self._session["session"],
                "model_info": {"name": "medusa", "version": message["model"], "arch": "medusa"},
                "model_uuid": message["model"],
            },
        }

    def _utterance_ends(self) -> Iterator[dict[str, Any]]:
        """`UtteranceEnd` of every channel that has been silent for long enough since its last words."""
        least = self._parameters.utterance_end_ms
        if least is None:
            return
        for channel, end in list(self._ended.items()):
            next_start = self._started.get(channel, -1.0)
            spoke_again = next_start > end
            silent_for = (next_start if spoke_again else ms_from_samples(self._received)) - end
            if spoke_again or silent_for >= least:
                del self._ended[channel]
            if silent_for >= least:
                yield {"type": "UtteranceEnd", "channel": self._index(channel), "last_word_end": end / 1000}

    def _metadata(self, message: wire.Message) -> dict[str, Any]:
        model = self._session["model"]
        return {
            "type": "Metadata",
            "transaction_key": "deprecated",
            "request_id": self._session["session"],
            "sha256": self._sha256.hexdigest(),
            "created": self._created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "duration": message["totals"]["received_ms"] / 1000,
            "channels": len(self._session["roles"]),
            "models": [model],
            "model_info": {model: {"name": "medusa", "version": model, "arch": "medusa"}},
        }

    def _index(self, channel: int) -> list[int]:
        return [channel, len(self._session["roles"])]
