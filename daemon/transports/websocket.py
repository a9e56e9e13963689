"""Any of our WebSocket protocols over one connection: one task reads, one scores, one writes."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Final

from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from daemon import wire
from daemon.channel import Channel, Closed, Overflow
from daemon.errors import CLOSE_OVERLOADED, CLOSE_POLICY, CLOSE_TOO_BIG, CapacityError, PeerError
from daemon.streams import GOING_AWAY, GOODBYE_S, MODEL_FAILED, SERVER_ERROR, Ending, Stream, Streams, cancelled
from daemon.transports.dialect import Audio, Close, Command, Dialect, Finalize, Frame, Handshake, Refusal, Reply, Start

_START_TIMEOUT_S: Final = 10.0
_CLIENT_GONE: Final = Ending("client_gone")
_CLIENT_CLOSED: Final = Ending("client_closed")
_NO_START: Final = Ending("idle", CLOSE_POLICY)


class WebSocketDoor:
    """One protocol's connections.

    Args:
        streams: of the process.
        dialect: makes the translation of one connection; raises nothing.
    """

    def __init__(self, streams: Streams, dialect: Callable[[Handshake], Dialect]) -> None:
        self._streams = streams
        self._dialect = dialect

    async def __call__(self, websocket: WebSocket) -> None:
        """Serves one connection."""
        arrived = asyncio.get_running_loop().time()
        dialect = self._dialect(_handshake(websocket))
        if (refusal := dialect.refusal()) is not None:
            self._streams.metrics.peer_errors.labels("refused").inc()
            await _deny(websocket, refusal, arrived)
            return
        await websocket.accept(dialect.subprotocol)
        with contextlib.ExitStack() as place:
            try:
                place.enter_context(self._streams.admitted())
            except CapacityError as error:
                await _refuse(websocket, dialect, error)
            else:
                await _Connection(websocket, self._streams, dialect).serve()


class _Connection:
    """One admitted connection."""

    def __init__(self, websocket: WebSocket, streams: Streams, dialect: Dialect) -> None:
        self._websocket = websocket
        self._streams = streams
        self._dialect = dialect
        self._stream: Stream | None = None
        self._outbox: Channel[Frame] = Channel(streams.rules.outbox, Overflow.REJECT)

    async def serve(self) -> None:
        """Runs the connection to its end."""
        writer = asyncio.create_task(self._write(), name="writer")
        ending = SERVER_ERROR
        try:
            ending = await self._read(writer)
            if ending.error is None:
                await self._execute(self._dialect.flush())
        except PeerError as error:
            ending = Ending.of(error)
        finally:
            await asyncio.shield(self._finish(ending, writer))

    async def _read(self, writer: "asyncio.Task[None]") -> Ending:
        """Reads until something ends the stream, and says what."""
        loop = asyncio.get_running_loop()
        start_by = loop.time() + _START_TIMEOUT_S
        draining = asyncio.create_task(self._streams.drained())
        try:
            ending = await self._execute(self._dialect.opening())
            while ending is None:
                stream = self._stream
                receiving = asyncio.create_task(self._websocket.receive())
                watched = {receiving, draining, writer} | ({stream.scoring} if stream else set())
                timeout = self._idle_timeout_s if stream else start_by - loop.time()
                done, _ = await asyncio.wait(watched, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if receiving not in done:
                    await cancelled(receiving)
                    return self._silent_end(done, draining, writer)
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    return self._disconnected(message.get("code"))
                ending = await self._execute(self._dialect.receive(self._frame(message)))
                if ending is None and len(done) > 1:  # a client faster than we read must not hide what else happened
                    return self._silent_end(done, draining, writer)
            return ending
        finally:
            await cancelled(draining)

    @property
    def _idle_timeout_s(self) -> float:
        return self._dialect.idle_timeout_s or self._streams.rules.idle_timeout_s

    def _frame(self, message: "MutableMapping[str, Any]") -> Frame:
        data = message.get("bytes")
        frame: Frame = data if isinstance(data, bytes) else str(message.get("text"))
        limit = self._streams.rules.max_message_bytes
        if len(frame) > limit:
            raise PeerError("too_big", f"a message of {len(frame)} bytes is over the limit of {limit}", CLOSE_TOO_BIG)
        return frame

    async def _execute(self, commands: Iterable[Command]) -> Ending | None:
        """Does what the client asks for; an end, if that is what it asks for."""
        for command in commands:
            if isinstance(command, Start):
                self._stream = self._streams.open(command.request, self._notify, command.endpointing)
            elif isinstance(command, Reply):
                self._outbox.offer(command.frame)
            elif isinstance(command, Close):
                return Ending(command.reason)
            elif self._stream is None:
                raise PeerError("bad_start", "audio came before the message that begins a stream")
            elif isinstance(command, Audio):
                await self._stream.feed(command.channels)
            elif isinstance(command, Finalize):
                await self._stream.finalize()
            if self._outbox.rejected:
                raise PeerError(
                    "slow_reader",
                    f"{self._streams.rules.outbox} messages wait and none is read: results are in Redis",
                    CLOSE_POLICY,
                )
        return None

    def _disconnected(self, code: object) -> Ending:
        if code == CLOSE_TOO_BIG:  # a message that the WebSocket layer refused before it came to us
            limit = self._streams.rules.max_message_bytes
            return Ending.of(PeerError("too_big", f"over {limit} bytes", CLOSE_TOO_BIG))
        return _CLIENT_CLOSED

    def _silent_end(
        self, done: "set[asyncio.Task[Any]]", draining: "asyncio.Task[None]", writer: "asyncio.Task[None]"
    ) -> Ending:
        if draining in done:
            return GOING_AWAY
        if writer in done:
            return _CLIENT_GONE
        if done:
            return MODEL_FAILED
        if self._stream is None:
            return _NO_START
        limit = self._idle_timeout_s
        return Ending.of(PeerError("idle", f"no message for {limit:g} s: send audio or keep_alive", CLOSE_POLICY))

    async def _finish(self, ending: Ending, writer: "asyncio.Task[None]") -> None:
        """Lets the stream finish, sends what is left to say, closes."""
        if ending.error is not None:
            self._streams.metrics.peer_errors.labels(ending.error.code).inc()
        if self._stream is not None:
            ending = await self._stream.finish(ending)
        elif ending.error is not None:
            self._notify(wire.error(ending.error.code, ending.error.message) | {"seq": 0})
        await self._outbox.close()
        await asyncio.wait({writer}, timeout=GOODBYE_S)
        await cancelled(writer)
        if self._dialect.client_closes:
            await self._hear_out()
        await _close_quietly(self._websocket, *self._dialect.closing(ending))

    async def _hear_out(self) -> None:
        """Answers what the client still says, until it closes the connection itself."""
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(GOODBYE_S):
                while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                    with contextlib.suppress(PeerError):  # what was under way when we said goodbye
                        for command in self._dialect.receive(self._frame(message)):
                            if isinstance(command, Reply):
                                await _send(self._websocket, command.frame)

    def _notify(self, message: wire.Message) -> None:
        """Puts a message into words now: a protocol that numbers them does so in the order in which they are sent."""
        for frame in self._dialect.render(message):
            self._outbox.offer(frame)

    async def _write(self) -> None:
        with contextlib.suppress(Closed, WebSocketDisconnect, RuntimeError):
            while True:
                await _send(self._websocket, await self._outbox.get())


def _handshake(websocket: WebSocket) -> Handshake:
    return Handshake(
        url=str(websocket.url),
        query=dict(websocket.query_params),
        headers=dict(websocket.headers),
        subprotocols=tuple(websocket.scope.get("subprotocols", ())),
    )


async def _deny(websocket: WebSocket, refusal: Refusal, arrived: float) -> None:
    await asyncio.sleep(arrived + refusal.delay_s - asyncio.get_running_loop().time())
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
        await websocket.send_denial_response(PlainTextResponse(refusal.message + "\n", refusal.status))


async def _refuse(websocket: WebSocket, dialect: Dialect, error: CapacityError) -> None:
    for frame in dialect.render(wire.error("overloaded", str(error)) | {"seq": 0}):
        await _send_quietly(websocket, frame)
    await _close_quietly(websocket, *dialect.closing(Ending("overloaded", CLOSE_OVERLOADED)))


async def _send(websocket: WebSocket, frame: Frame) -> None:
    await (websocket.send_bytes(frame) if isinstance(frame, bytes) else websocket.send_text(frame))


async def _send_quietly(websocket: WebSocket, frame: Frame) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await _send(websocket, frame)


async def _close_quietly(websocket: WebSocket, code: int, reason: str) -> None:
    if websocket.client_state is not WebSocketState.DISCONNECTED:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await asyncio.wait_for(websocket.close(code, reason), GOODBYE_S)
