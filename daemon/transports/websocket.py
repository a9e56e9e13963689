"""The native protocol v1 over WebSocket: `/v1/stream`.

    client                                     server
    query or {"type":"start", ...}       ->    session.created
    binary audio                         ->    speech.started, emotion (interim and final)
    {"type":"keep_alive"}                ->
    {"type":"finalize"}                  ->    emotion of what was said so far
    {"type":"close"}, or just a close    ->    the last emotions, session.closed (totals), close 1000

Whatever ends a stream - a close, a mistake, a vanished client, our own shutdown - the audio accepted before is scored and
published. One task reads, one scores, one writes.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from daemon import wire
from daemon.channel import Channel, Closed, Overflow
from daemon.errors import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL,
    CLOSE_NORMAL,
    CLOSE_OVERLOADED,
    CLOSE_POLICY,
    CLOSE_TOO_BIG,
    CLOSE_UNSUPPORTED,
    PeerError,
    UpstreamError,
)
from daemon.messages import CallInfo
from daemon.metrics import Metrics
from daemon.pipeline import Call, Services
from daemon.resample import AudioDecoder
from daemon.session import Previews, Session
from daemon.transports.request import StreamRequest, parse_object, request_of_message, request_of_query
from model.audio import samples_from_ms
from model.segmenter import Endpointing
from model.vad import SpeechDetector

_START_TIMEOUT_S = 10.0
_WRITE_GRACE_S = 5.0
"""How long the last messages may take to a reader that is slow."""


@dataclass(frozen=True, slots=True)
class StreamRules:
    """What streams share.

    Attributes:
        bundle_id: stamped on results.
        trained_classes: told to the client.
        trained_attributes: told to the client.
        languages: ISO 639-1 codes that a stream may ask for.
        endpointing: when speech begins and ends.
        interim_ms: default distance of interim results.
        ahead_silence_ms: silence after which an utterance is scored ahead; 0 for never.
        max_streams: streams at a time.
        max_message_bytes: of one message.
        idle_timeout_s: without any message.
        outbox: messages that may wait for a slow reader.
    """

    bundle_id: str
    trained_classes: tuple[str, ...]
    trained_attributes: tuple[str, ...]
    languages: tuple[str, ...]
    endpointing: Endpointing
    interim_ms: int
    ahead_silence_ms: int
    max_streams: int
    max_message_bytes: int
    idle_timeout_s: float
    outbox: int


@dataclass(slots=True)
class _Ending:
    """Why a stream ended."""

    reason: str
    code: int = CLOSE_NORMAL
    error: PeerError | None = None


@dataclass(frozen=True, slots=True)
class _Stopping:
    """How far the process is on its way down: first streams are finished, then what is not finished is given up."""

    draining: asyncio.Event = field(default_factory=asyncio.Event)
    giving_up: asyncio.Event = field(default_factory=asyncio.Event)


class StreamServer:
    """All WebSocket streams of the process."""

    def __init__(self, rules: StreamRules, services: Services, metrics: Metrics) -> None:
        self._rules = rules
        self._services = services
        self._metrics = metrics
        self._open = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._stopping = _Stopping()

    @property
    def draining(self) -> bool:
        """Whether new streams are refused and open ones are being finished."""
        return self._stopping.draining.is_set()

    async def drain(self, timeout_s: float) -> int:
        """Ends every stream at its next message boundary, finished properly; returns how many were not in time.

        Those are given up: what they still had to score is counted in their `call.failed`, never left out in silence.
        """
        self._stopping.draining.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed.wait(), timeout_s)
        late = self._open
        self._stopping.giving_up.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed.wait(), 3 * _WRITE_GRACE_S)
        return late

    async def __call__(self, websocket: WebSocket) -> None:
        """Serves one connection."""
        await websocket.accept()
        if self._open >= self._rules.max_streams or self.draining:
            self._metrics.refused.inc()
            reason = "the server is shutting down" if self.draining else f"{self._open} streams are open, the limit"
            await _send_quietly(websocket, wire.error("overloaded", f"{reason}: come back later") | {"seq": 0})
            await _close_quietly(websocket, CLOSE_OVERLOADED)
            return
        self._open += 1
        self._all_closed.clear()
        self._metrics.streams.set(self._open)
        self._metrics.accepted.inc()
        try:
            await self._serve(websocket)
        finally:
            self._open -= 1
            self._metrics.streams.set(self._open)
            if self._open == 0:
                self._all_closed.set()

    async def _serve(self, websocket: WebSocket) -> None:
        try:
            request = await self._request(websocket)
            decoder = AudioDecoder(request.encoding, request.sample_rate, request.channels)
            info = self._info(request)
        except PeerError as error:
            self._metrics.peer_errors.labels(error.code).inc()
            await _send_quietly(websocket, wire.error(error.code, error.message) | {"seq": 0})
            await _close_quietly(websocket, error.close_code)
            return
        except (WebSocketDisconnect, TimeoutError):
            # Nobody was spoken to yet: on our way down there is nothing to finish.
            await _close_quietly(websocket, CLOSE_GOING_AWAY if self.draining else CLOSE_POLICY)
            return
        await _Connection(websocket, self._rules, self._services, self._stopping, self._metrics, info).serve(
            request, decoder
        )

    async def _request(self, websocket: WebSocket) -> StreamRequest:
        if websocket.query_params:
            return request_of_query(websocket.query_params)
        message = await self._first_message(websocket)
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        if message.get("text") is None:
            raise PeerError(
                "bad_start", "audio came before the stream's parameters: give them in the query or as a start message"
            )
        return request_of_message(message["text"])

    async def _first_message(self, websocket: WebSocket) -> "MutableMapping[str, Any]":
        """The message that opens a stream.

        Raises:
            TimeoutError: if it does not come in time, or before the process goes down.
        """
        receiving = asyncio.create_task(websocket.receive())
        draining = asyncio.create_task(self._stopping.draining.wait())
        try:
            done, _ = await asyncio.wait(
                {receiving, draining}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if receiving not in done:
                raise TimeoutError
            return receiving.result()
        finally:
            await _cancel(receiving)
            await _cancel(draining)

    def _info(self, request: StreamRequest) -> CallInfo:
        known = self._rules.languages
        if request.language is not None and request.language not in known:
            raise PeerError(
                "bad_language",
                f"language {request.language!r} is not known to this bundle; it knows {', '.join(known)}",
                CLOSE_UNSUPPORTED,
            )
        session = uuid.uuid4().hex
        return CallInfo(
            call=request.call_id or session,
            session=session,
            roles=request.role_names(),
            model=self._rules.bundle_id,
            language=request.language,
            metadata=request.metadata,
        )


class _Connection:
    """One accepted stream."""

    def __init__(
        self,
        websocket: WebSocket,
        rules: StreamRules,
        services: Services,
        stopping: _Stopping,
        metrics: Metrics,
        info: CallInfo,
    ) -> None:
        self._websocket = websocket
        self._rules = rules
        self._services = services
        self._stopping = stopping
        self._metrics = metrics
        self._info = info
        self._outbox: Channel[wire.Message] = Channel(rules.outbox, Overflow.REJECT)
        self._log = logging.LoggerAdapter(logging.getLogger(__name__), {"session": info.session})

    async def serve(self, request: StreamRequest, decoder: AudioDecoder) -> None:
        """Runs the stream to its end."""
        interim_ms = self._rules.interim_ms if request.interim_ms is None else request.interim_ms
        previews = Previews(samples_from_ms(interim_ms), samples_from_ms(self._rules.ahead_silence_ms))
        session = Session([SpeechDetector() for _ in self._info.roles], self._rules.endpointing, previews)
        call = Call(self._info, session, self._services, self._notify)
        call.started()
        self._notify(wire.session_created(self._info, self._rules.trained_classes, self._rules.trained_attributes))
        writer = asyncio.create_task(self._write(), name="writer")
        scoring = asyncio.create_task(call.run(), name="scoring")
        giving_up = asyncio.create_task(self._give_up(scoring), name="giving up")
        ending = _Ending("server_error", CLOSE_INTERNAL)
        try:
            ending = await self._read(call, decoder, writer, scoring)
            if ending.error is None:
                await call.feed(decoder.flush())
        except PeerError as error:
            ending = _Ending(error.code, error.close_code, error)
        finally:
            await asyncio.shield(self._finish(call, scoring, writer, ending))
            giving_up.cancel()

    async def _give_up(self, scoring: "asyncio.Task[None]") -> None:
        await self._stopping.giving_up.wait()
        scoring.cancel()

    async def _read(
        self, call: Call, decoder: AudioDecoder, writer: "asyncio.Task[None]", scoring: "asyncio.Task[None]"
    ) -> _Ending:
        """Reads until something ends the stream, and says what."""
        draining = asyncio.create_task(self._stopping.draining.wait())
        try:
            while True:
                receiving = asyncio.create_task(self._websocket.receive())
                watched = {receiving, draining, writer, scoring}
                done, _ = await asyncio.wait(
                    watched, timeout=self._rules.idle_timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                if receiving not in done:
                    await _cancel(receiving)
                    return self._silent_end(done, draining, writer)
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    return self._disconnected(message.get("code"))
                if (ending := await self._handle(message, call, decoder)) is not None:
                    return ending
                if len(done) > 1:  # a client faster than we read must not hide what else happened
                    return self._silent_end(done, draining, writer)
        finally:
            await _cancel(draining)

    def _disconnected(self, code: object) -> _Ending:
        if code == CLOSE_TOO_BIG:  # a message that the WebSocket layer refused before it came to us
            limit = self._rules.max_message_bytes
            return _Ending("too_big", CLOSE_TOO_BIG, PeerError("too_big", f"over {limit} bytes", CLOSE_TOO_BIG))
        return _Ending("client_closed")

    def _silent_end(
        self, done: "set[asyncio.Task[object]]", draining: "asyncio.Task[object]", writer: "asyncio.Task[None]"
    ) -> _Ending:
        if draining in done:
            return _Ending("going_away", CLOSE_GOING_AWAY)
        if writer in done:
            return _Ending("client_gone")
        if done:
            return _Ending("model_failed", CLOSE_INTERNAL)
        limit = self._rules.idle_timeout_s
        return _Ending(
            "idle",
            CLOSE_POLICY,
            PeerError("idle", f"no message for {limit:g} s: send audio or keep_alive", CLOSE_POLICY),
        )

    async def _handle(self, message: "MutableMapping[str, Any]", call: Call, decoder: AudioDecoder) -> _Ending | None:
        data, text = message.get("bytes"), message.get("text")
        if isinstance(data, bytes):
            if len(data) > self._rules.max_message_bytes:
                limit = self._rules.max_message_bytes
                raise PeerError(
                    "too_big", f"a message of {len(data)} bytes is over the limit of {limit}", CLOSE_TOO_BIG
                )
            await call.feed(decoder.decode(data))
            if self._outbox.rejected:
                raise PeerError(
                    "slow_reader",
                    f"{self._rules.outbox} messages wait and none is read: results are in Redis",
                    CLOSE_POLICY,
                )
            return None
        kind = parse_object(str(text)).get("type")
        if kind == "keep_alive":
            return None
        if kind == "finalize":
            await call.finalize()
            return None
        if kind == "close":
            return _Ending("client_closed")
        raise PeerError("bad_type", f"message type {kind!r} is not known; there are keep_alive, finalize and close")

    async def _finish(
        self, call: Call, scoring: "asyncio.Task[None]", writer: "asyncio.Task[None]", ending: _Ending
    ) -> None:
        """Scores what was accepted, publishes the end, says goodbye."""
        closing = asyncio.create_task(call.close())
        await asyncio.wait({closing, scoring}, return_when=asyncio.FIRST_COMPLETED)
        if scoring.done() and not closing.done():
            await _cancel(closing)
        await asyncio.wait({scoring})
        if scoring.cancelled():
            self._log.error("gave up with %d of %d utterances scored", call.totals.finals, call.totals.utterances)
            ending = _Ending("going_away", CLOSE_INTERNAL)
        elif (problem := _problem(scoring) or _problem(closing)) is not None:
            # A model's trace is its own; any other failure is ours, and its trace is wanted.
            ours = None if isinstance(problem, UpstreamError) else problem
            self._log.error("the stream failed: %s", problem, exc_info=ours)
            ending = _Ending("model_failed" if ours is None else "server_error", CLOSE_INTERNAL)
        if ending.error is not None:
            self._metrics.peer_errors.labels(ending.error.code).inc()
            self._notify(wire.error(ending.error.code, ending.error.message))
        failed = ending.code == CLOSE_INTERNAL
        call.ended(ending.reason, failed=failed)
        self._notify(wire.session_closed(call.totals, ending.reason))
        await self._outbox.close()
        await asyncio.wait({writer}, timeout=_WRITE_GRACE_S)
        await _cancel(writer)
        await _close_quietly(self._websocket, ending.code)
        self._log.info("stream ended: %s, %d utterances", ending.reason, call.totals.finals)

    def _notify(self, message: wire.Message) -> None:
        self._outbox.offer(message)

    async def _write(self) -> None:
        seq = 0
        with contextlib.suppress(Closed, WebSocketDisconnect, RuntimeError):
            while True:
                message = await self._outbox.get()
                await self._websocket.send_json(message | {"seq": seq})
                seq += 1


def _problem(task: "asyncio.Task[None]") -> BaseException | None:
    """What a task that is done failed with."""
    return None if task.cancelled() else task.exception()


async def _cancel(task: "asyncio.Task[object] | asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _send_quietly(websocket: WebSocket, message: wire.Message) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_json(message)


async def _close_quietly(websocket: WebSocket, code: int) -> None:
    if websocket.client_state is not WebSocketState.DISCONNECTED:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await asyncio.wait_for(websocket.close(code), _WRITE_GRACE_S)
