"""A client of the native protocol that outlives its connections: `stream(url, chunks, reconnect_s=30)`.

    chunks -> Tape (what the server may need again) -> connection -> messages
                 ^                                        |
                 '------------- audio.settled ------------'

A lost connection is resumed with the stream's token: audio goes on where the server stopped hearing it, messages where we
stopped. Where the server does not know the stream any more (it was restarted, or the window is over), another stream of the
same call begins with the audio whose results were not settled: nothing is lost, but an utterance may be scored twice.
"""

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

_LONGEST_S: Final = 120.0
"""Audio that is kept. Where nothing is settled for so long (Redis may be away), the oldest that was sent goes; a source that
gives more than can be sent waits."""
_SHORTEST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_UNKNOWN: Final = "unknown_resume"
_OVERLOADED: Final = "overloaded"

Message = dict[str, Any]
Connect = Callable[[Message], Awaitable[ClientConnection]]
"""Opens a connection that begins a stream with these parameters, or, with none at all, one that resumes."""


class Tape:
    """Audio from the first sample that may be needed again, in bytes since its begin.

    Args:
        second: bytes of a second.
        frame: bytes of a sample of every channel.
    """

    def __init__(self, second: int, frame: int) -> None:
        self.start = 0
        self.end = 0
        self.complete = False
        self._sent = 0
        self._second = second
        self._frame = frame
        self._chunks: deque[bytes] = deque()
        self._changed = asyncio.Condition()

    async def record(self, chunks: AsyncIterable[bytes]) -> None:
        """Takes everything that a source gives, as fast as there is room."""
        try:
            async for chunk in chunks:
                async with self._changed:
                    await self._changed.wait_for(self._has_room)
                    self._chunks.append(chunk)
                    self.end += len(chunk)
                    self._changed.notify_all()
        finally:
            async with self._changed:
                self.complete = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        longest = _LONGEST_S * self._second
        while self.end - self.start >= longest and self._chunks and self.start + len(self._chunks[0]) <= self._sent:
            self.start += len(self._chunks.popleft())
        return self.end - self.start < longest

    async def sent(self, position: int) -> None:
        """Notes that everything before `position` was sent, for the first time or again."""
        async with self._changed:
            self._sent = position
            self._changed.notify_all()

    async def after(self, position: int) -> bytes:
        """Audio from `position` on, waiting for some; empty behind the end.

        Raises:
            ValueError: if it is kept no more.
        """
        if position < self.start:
            raise ValueError(f"the tape begins at {self.start}, {position} is kept no more")
        async with self._changed:
            await self._changed.wait_for(lambda: self.end > position or self.complete)
        skipped = self.start
        for chunk in self._chunks:
            if skipped + len(chunk) > position:
                return chunk[position - skipped :]
            skipped += len(chunk)
        return b""

    async def forget(self, position: int) -> None:
        """Drops the chunks that lie before `position`."""
        async with self._changed:
            while self._chunks and self.start + len(self._chunks[0]) <= position:
                self.start += len(self._chunks.popleft())
            self._changed.notify_all()

    def bytes_of(self, ms: float) -> int:
        """Where the sample lies that begins at `ms` or before it."""
        position = int(ms * self._second / 1000)
        return position - position % self._frame

    def ms_of(self, position: int) -> float:
        """The time that `position` has on the tape."""
        return position * 1000 / self._second

    def bytes_of_samples(self, samples: int) -> int:
        """Where the sample lies that so many come before."""
        return samples * self._frame

    def ends_at(self, position: int) -> bool:
        """Whether nothing is behind `position` but the rounding of a resampler."""
        return self.complete and self.end - position < self._second / 100


@dataclass(slots=True)
class _Session:
    """What we know of the stream as the server has it."""

    parameters: Message
    token: str | None = None
    base: int = 0
    """Where on the tape it began."""
    settled: int = 0
    """Where on the tape its results are sure up to."""
    seq: int = -1
    begun: bool = False
    """Whether there ever was a stream."""
    lost_since: float | None = None


def early_end(connection: ClientConnection) -> ConnectionError:
    """The server ended a connection before it ended the stream."""
    return ConnectionError(f"the server closed the connection early ({connection.close_code})")


class _Lost(Exception):
    """The connection ended, the stream did not."""


async def resuming(
    connect: Connect, parameters: Message, chunks: AsyncIterable[bytes], tape: Tape, reconnect_s: float
) -> AsyncGenerator[Message, None]:
    """Every message of a stream, over as many connections as it takes.

    Args:
        connect: opens a connection.
        parameters: of the stream.
        chunks: binary audio messages.
        tape: empty.
        reconnect_s: how long a lost connection is tried again before the stream is given up.

    Raises:
        ConnectionError: if there is no such server, or it did not come back in time.
    """
    session = _Session(parameters | {"resume": True})
    connection = await connect(session.parameters)
    recording = asyncio.create_task(tape.record(chunks))
    try:
        while True:
            try:
                async with aclosing(_exchange(connection, session, tape)) as messages:
                    async for message in messages:
                        yield message
                break
            except _Lost:
                connection = await _again(connect, session, reconnect_s)
        if recording.done():
            recording.result()  # where the source failed, that is why the stream ended
    finally:
        recording.cancel()
        await asyncio.wait({recording})


async def _again(connect: Connect, session: _Session, reconnect_s: float) -> ClientConnection:
    loop = asyncio.get_running_loop()
    session.lost_since = session.lost_since or loop.time()
    problem: ConnectionError | None = None
    while True:
        if loop.time() > session.lost_since + reconnect_s:
            raise ConnectionError(
                f"the connection was lost, and for {reconnect_s:g} s not to be had again"
            ) from problem
        # A quarter of the time that it has been away by now: from once in a tenth of a second to once in two.
        pause_s = min(max((loop.time() - session.lost_since) / 4, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        try:
            return await connect({} if session.token else session.parameters)
        except ConnectionError as error:
            problem = error


async def _exchange(connection: ClientConnection, session: _Session, tape: Tape) -> AsyncGenerator[Message, None]:
    """The messages of one connection.

    Raises:
        _Lost: if it ended before the stream did.
    """
    sending: asyncio.Task[None] | None = None
    try:
        if session.token is not None:
            await connection.send(json.dumps({"type": "resume", "resume": session.token, "after": session.seq}))
        async for text in connection:
            message: Message = json.loads(text)
            if session.begun and message["type"] == "error" and message["code"] in (_UNKNOWN, _OVERLOADED):
                if message["code"] == _UNKNOWN:
                    session.token = None
                raise _Lost
            session.seq = message["seq"]
            if message["type"] in ("session.created", "session.resumed"):
                session.begun, session.lost_since = True, None
            if message["type"] == "session.created":
                session.token, session.base = message["resume"], max(session.settled, tape.start)
                message["begins_ms"] = tape.ms_of(session.base)
                session.parameters["call_id"] = message["call"]
                sending = asyncio.create_task(_send(connection, session, tape, session.base))
            elif message["type"] == "session.resumed":
                heard = max(session.base + tape.bytes_of_samples(message["received"]), tape.start)
                sending = asyncio.create_task(_send(connection, session, tape, heard))
            elif message["type"] == "audio.settled":
                session.settled = session.base + tape.bytes_of(message["settled_ms"])
                await tape.forget(session.settled)
            yield message
            if message["type"] == "session.closed":
                heard = session.base + tape.bytes_of(message["totals"]["received_ms"])
                if message["reason"] != "going_away" or tape.ends_at(heard):
                    return
                session.token, session.settled = None, heard  # what it heard it finished
                await tape.forget(heard)
                raise _Lost
        raise _lost(connection, session)
    except ConnectionClosed as error:
        raise _lost(connection, session) from error
    finally:
        if sending is not None:
            sending.cancel()
            await asyncio.wait({sending})
        with suppress(ConnectionClosed):
            await connection.close()


def _lost(connection: ClientConnection, session: _Session) -> Exception:
    """What the end of a connection is: a stream that never began is not to be had again either."""
    return _Lost() if session.begun else early_end(connection)


async def _send(connection: ClientConnection, session: _Session, tape: Tape, position: int) -> None:
    with suppress(ConnectionClosed):  # the reading side says why
        while chunk := await tape.after(position):
            await connection.send(chunk)
            position += len(chunk)
            await tape.sent(position)
            if (
                session.token is None
            ):  # the server keeps no streams: what it has not answered is lost with the connection
                session.settled = position
                await tape.forget(position)
        await connection.send(json.dumps({"type": "close"}))
