"""Any of our WebSocket protocols over one connection: one task reads, one scores, one writes."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from daemon import wire
from daemon.access.usage import Account, account_of
from daemon.channel import Channel, Closed, Overflow
from daemon.errors import (
    CLOSE_GOING_AWAY,
    CLOSE_NORMAL,
    CLOSE_OVERLOADED,
    CLOSE_POLICY,
    CLOSE_TOO_BIG,
    CapacityError,
    PeerError,
)
from daemon.parking import Parked
from daemon.stream import GOING_AWAY, MODEL_FAILED, SERVER_ERROR, Ending, Stream, cancelled
from daemon.streams import GOODBYE_S, Streams
from daemon.transports.dialect import (
    Audio,
    Close,
    Command,
    Dialect,
    Finalize,
    Frame,
    Handshake,
    Refusal,
    Reply,
    Resume,
    Start,
)

_START_TIMEOUT_S: Final = 10.0
_CLIENT_GONE: Final = Ending("client_gone")
_CLIENT_LOST: Final = Ending("client_closed", CLOSE_GOING_AWAY)
"""The connection ended without a goodbye, or a newer one took its stream."""
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
                place.enter_context(self._streams.admitted(account_of(websocket.scope)))
            except CapacityError as error:
                await _refuse(websocket, dialect, error)
            else:
                await _Connection(websocket, self._streams, dialect).serve()


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a connection knew of its stream: how its audio is read, how much of it was, its place among its owner's streams,
    and that it waits.
    """

    dialect: Dialect
    received: int
    place: contextlib.ExitStack
    waiting: contextlib.ExitStack


class _Connection:
    """One admitted connection."""

    def __init__(self, websocket: WebSocket, streams: Streams, dialect: Dialect) -> None:
        self._websocket = websocket
        self._streams = streams
        self._dialect = dialect
        self._stream: Stream | None = None
        self._received = 0
        """Samples per channel, as the client counts them."""
        self._held = contextlib.ExitStack()
        """That we have the stream."""
        self._place = contextlib.ExitStack()
        """Our stream's, among its owner's; it goes with the stream."""
        self._outbox: Channel[Frame] = Channel(streams.rules.outbox, Overflow.REJECT)
        self._interruption: Ending | None = None
        """What ended the stream beside its own messages."""
        self._patience: asyncio.Timeout | None = None
        """Of the message that is waited for."""

    async def serve(self) -> None:
        """Runs the connection to its end."""
        writer = asyncio.create_task(self._write(), name="writer")
        draining = asyncio.create_task(self._streams.drained(), name="draining")
        writer.add_done_callback(lambda _: self._interrupt(_CLIENT_GONE))
        draining.add_done_callback(lambda _: self._interrupt(GOING_AWAY))
        ending = SERVER_ERROR
        try:
            ending = await self._read()
            if ending.error is None and not self._may_come_back(ending):
                await self._execute(self._dialect.flush())
        except PeerError as error:
            ending = Ending.of(error)
        finally:
            await cancelled(draining)
            await asyncio.shield(self._finish(ending, writer))

    def _interrupt(self, ending: Ending) -> None:
        """Ends the stream at the next message boundary. What came first is the reason."""
        self._interruption = self._interruption or ending
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    async def _read(self) -> Ending:
        """Reads until something ends the stream, and says what."""
        loop = asyncio.get_running_loop()
        start_by = loop.time() + _START_TIMEOUT_S
        ending = await self._execute(self._dialect.opening())
        while ending is None:
            message = await self._receive(loop.time() + self._idle_timeout_s if self._stream else start_by)
            if message is None:
                return self._interruption or self._idle_end()
            if message["type"] == "websocket.disconnect":
                return self._disconnected(message.get("code"))
            ending = await self._execute(self._dialect.receive(self._frame(message)))
        return ending

    async def _receive(self, deadline: float) -> "MutableMapping[str, Any] | None":
        """The next message; None if there is none in time, or something else ends the stream."""
        if self._interruption is not None:
            return None
        try:
            # One timer, not tasks to wait for: this runs for every message of every stream.
            async with asyncio.timeout_at(deadline) as self._patience:
                return await self._websocket.receive()
        except TimeoutError:
            return None
        finally:
            self._patience = None

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
                self._begin(command)
            elif isinstance(command, Resume):
                if (ended := await self._resume(command)) is not None:
                    return ended
            elif isinstance(command, Reply):
                self._outbox.offer(command.frame)
            elif isinstance(command, Close):
                return Ending(command.reason)
            elif self._stream is None:
                raise PeerError("bad_start", "audio came before the message that begins a stream")
            elif isinstance(command, Audio):
                await self._stream.feed(command.channels)
                self._received += command.received
            elif isinstance(command, Finalize):
                await self._stream.finalize()
            if self._outbox.rejected:
                raise PeerError(
                    "slow_reader",
                    f"{self._streams.rules.outbox} messages wait and none is read: results are in Redis",
                    CLOSE_POLICY,
                )
        return None

    @property
    def _account(self) -> Account:
        """Whose it is: known before the stream, but maybe not before the first message."""
        return account_of(self._websocket.scope)

    def _begin(self, start: Start) -> None:
        with contextlib.ExitStack() as place:
            try:
                place.enter_context(self._streams.place(self._account))
            except CapacityError as error:
                raise PeerError("overloaded", str(error), CLOSE_OVERLOADED) from error
            self._hold(self._streams.open(start.request, self._notify, start.endpointing, self._account))
            self._place = place.pop_all()

    def _hold(self, stream: Stream) -> None:
        self._stream = stream
        stream.scoring.add_done_callback(lambda _: self._interrupt(MODEL_FAILED))
        if stream.token is not None:
            let_go = functools.partial(self._interrupt, _CLIENT_LOST)
            self._held.enter_context(self._streams.parking.connected(stream.token, self._account, let_go))

    async def _resume(self, command: Resume) -> Ending | None:
        """Goes on with a stream; with one that has ended, says again what its client did not get, and how it ended."""
        parked = await self._streams.parking.take(command.token, self._account)
        stream, kept = parked.stream, parked.kept
        assert isinstance(stream, Stream)  # nobody else parks
        assert isinstance(kept, _Kept)
        kept.waiting.close()
        if stream.ended is None:
            self._dialect, self._received, self._place = kept.dialect, kept.received, kept.place
            self._hold(stream)
        else:
            self._streams.parking.park(command.token, parked)
        stream.attach(self._notify, command.after, self._received)
        await asyncio.sleep(0)  # to the writer: what is repeated at once is no sign of a slow reader
        return stream.ended

    def _may_come_back(self, ending: Ending) -> bool:
        stream = self._stream
        lost = ending in (_CLIENT_LOST, _CLIENT_GONE)
        return lost and stream is not None and stream.token is not None and not self._streams.draining

    def _park(self, stream: Stream) -> None:
        """Keeps the stream, if its client may come back, for when it does."""
        if stream.token is None:
            return

        place, waiting = self._place.pop_all(), contextlib.ExitStack()
        if stream.ended is None:
            waiting.enter_context(self._account.parked())

        async def finish() -> None:
            with place, waiting:
                with contextlib.suppress(PeerError):
                    for command in self._dialect.flush():
                        if isinstance(command, Audio):
                            await stream.feed(command.channels)
                await stream.finish(GOING_AWAY if self._streams.draining else _CLIENT_GONE)

        kept = _Kept(self._dialect, self._received, place, waiting)
        parked = Parked(stream, self._account, kept, finish if stream.ended is None else None)
        self._streams.parking.park(stream.token, parked)

    def _disconnected(self, code: object) -> Ending:
        if code == CLOSE_TOO_BIG:  # a message that the WebSocket layer refused before it came to us
            limit = self._streams.rules.max_message_bytes
            return Ending.of(PeerError("too_big", f"over {limit} bytes", CLOSE_TOO_BIG))
        return _CLIENT_CLOSED if code in (CLOSE_NORMAL, CLOSE_GOING_AWAY) else _CLIENT_LOST

    def _idle_end(self) -> Ending:
        if self._stream is None:
            return _NO_START
        limit = self._idle_timeout_s
        return Ending.of(PeerError("idle", f"no message for {limit:g} s: send audio or keep_alive", CLOSE_POLICY))

    async def _finish(self, ending: Ending, writer: "asyncio.Task[None]") -> None:
        """Lets the stream finish, sends what is left to say, closes."""
        if ending.error is not None:
            self._streams.metrics.peer_errors.labels(ending.error.code).inc()
        if self._stream is not None and self._may_come_back(ending):
            self._park(self._stream)
            self._held.close()
            await cancelled(writer)
            await _close_quietly(self._websocket, CLOSE_GOING_AWAY, "")
            return
        if self._stream is not None:
            with self._place:
                ending = await self._stream.finish(ending)
            self._park(self._stream)
            self._held.close()
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
