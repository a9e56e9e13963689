"""The native protocol v1: `/v1/stream`; docs/asyncapi.yaml.

client                                     server
query or {"type":"start", ...}       ->    session.created
binary audio                         ->    speech.started, emotion (interim and final)
{"type":"keep_alive"}                ->
{"type":"finalize"}                  ->    emotion of what was said so far
{"type":"close"}, or just a close    ->    the last emotions, session.closed (totals), close 1000
"""

import json
from collections.abc import Iterable

from daemon import wire
from daemon.errors import PeerError
from daemon.request import StreamRequest, parse_object, request_of_message, request_of_query
from daemon.resample import AudioDecoder
from daemon.streams import Ending
from daemon.transports.dialect import Audio, Close, Command, Finalize, Frame, Handshake, Refusal, Start


class NativeDialect:
    """One connection; see `daemon.transports.dialect.Dialect`."""

    subprotocol: str | None = None
    idle_timeout_s: float | None = None
    client_closes = False

    def __init__(self, handshake: Handshake) -> None:
        self._query = handshake.query
        self._decoder: AudioDecoder | None = None

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
            return [self._start(request_of_message(frame))]
        if isinstance(frame, bytes):
            return [Audio(self._decoder.decode(frame))]
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
        self._decoder = AudioDecoder(request.encoding, request.sample_rate, request.channels)
        return Start(request)


def _control(text: str) -> list[Command]:
    kind = parse_object(text).get("type")
    if kind == "keep_alive":
        return []
    if kind == "finalize":
        return [Finalize()]
    if kind == "close":
        return [Close()]
    raise PeerError("bad_type", f"message type {kind!r} is not known; there are keep_alive, finalize and close")
