"""The native protocol v1: `/v1/stream`; docs/asyncapi.yaml.

client                                     server
query or {"type":"start", ...}       ->    session.created
binary audio: samples, or a packet   ->    speech.started, emotion (interim and final)
{"type":"keep_alive"}                ->
{"type":"finalize"}                  ->    emotion of what was said so far
{"type":"close"}, or just a close    ->    the last emotions, session.closed (totals), close 1000

A stream with `resume` outlives its connection: {"type":"resume", "resume": token, "after": seq} on another one goes on with it.
"""

import json
from collections.abc import Callable, Iterable

from daemon import wire
from daemon.access.credentials import offered_scheme
from daemon.errors import CLOSE_UNSUPPORTED, PeerError
from daemon.request import StreamRequest, parse_object, request_of_message, request_of_query, resume_of_message
from daemon.resample import ENCODINGS, AudioDecoder
from daemon.stream import Ending
from daemon.transports.dialect import Audio, Close, Command, Finalize, Frame, Handshake, Refusal, Resume, Start
from daemon.transports.opus import OPUS, OPUS_RATE_HZ, OpusDecoder, packet_samples


class NativeDialect:
    """One connection; see `daemon.transports.dialect.Dialect`."""

    idle_timeout_s: float | None = None
    client_closes = False

    def __init__(self, handshake: Handshake) -> None:
        self.subprotocol = offered_scheme(handshake.subprotocols)
        self._query = handshake.query
        self._decoder: AudioDecoder | OpusDecoder | None = None
        self._samples: Callable[[bytes], int] = packet_samples
        """Per channel, in a message."""

    def refusal(self) -> Refusal | None:
        """None: mistakes are told in the protocol's own words."""
        return None

    def opening(self) -> Iterable[Command]:
        """The stream, where the query describes it."""
        return [self._start(request_of_query(self._query))] if self._query else []

    def receive(self, frame: Frame) -> Iterable[Command]:
        """A start message, audio, or one of the three words of control."""
        if self._decoder is None:
            if isinstance(frame, bytes):
                raise PeerError(
                    "bad_start",
                    "audio came before the stream's parameters: give them in the query or as a start message",
                )
            if (resume := resume_of_message(frame)) is not None:
                return [Resume(resume.resume, resume.after)]
            return [self._start(request_of_message(frame, ignored=("token",)))]
        if isinstance(frame, bytes):
            return [Audio(self._decoder.decode(frame), self._samples(frame))]
        return _control(frame)

    def flush(self) -> Iterable[Command]:
        """The samples that the resamplers hold."""
        return [] if self._decoder is None else [Audio(self._decoder.flush())]

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """As JSON."""
        return [json.dumps(message, separators=(",", ":"), ensure_ascii=False)]

    def closing(self, ending: Ending) -> tuple[int, str]:
        """Our own codes; the reason is in `session.closed`."""
        return ending.code, ""

    def _start(self, request: StreamRequest) -> Command:
        if request.encoding == OPUS:
            if "sample_rate" in request.model_fields_set and request.sample_rate != OPUS_RATE_HZ:
                raise PeerError(
                    "bad_sample_rate",
                    f"sample_rate {request.sample_rate} is none of Opus: leave it out, or say {OPUS_RATE_HZ}",
                    CLOSE_UNSUPPORTED,
                )
            self._decoder = OpusDecoder(request.channels)
        elif request.encoding in ENCODINGS:
            decoder = self._decoder = AudioDecoder(request.encoding, request.sample_rate, request.channels)
            self._samples = lambda frame: len(frame) // decoder.frame_bytes
        else:
            known = ", ".join([*ENCODINGS, OPUS])
            raise PeerError(
                "bad_encoding",
                f"encoding {request.encoding!r:.80} is not known; use one of {known}",
                CLOSE_UNSUPPORTED,
            )
        return Start(request)


def token_of(text: str | None) -> str | None:
    """The credential in a first message, whether it starts or resumes; None where there is none, or it is no object."""
    if text is None:
        return None
    try:
        token = parse_object(text).get("token")
    except PeerError:
        return None
    return token if isinstance(token, str) and token else None


def told(problem: str) -> Frame:
    """What a client gets that may not stream, before the close with 1008."""
    return json.dumps(wire.error("unauthorized", problem) | {"seq": 0}, separators=(",", ":"), ensure_ascii=False)


def _control(text: str) -> list[Command]:
    kind = parse_object(text).get("type")
    if kind == "keep_alive":
        return []
    if kind == "finalize":
        return [Finalize()]
    if kind == "close":
        return [Close()]
    raise PeerError("bad_type", f"message type {kind!r} is not known; there are keep_alive, finalize and close")
