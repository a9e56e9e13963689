"""Streams whose client lost its connection, kept for the one that comes back.

A client that asked for it got a resume token. While its stream is parked nothing of it is cut: what was accepted is scored
and published, what is being said stays open, and messages are kept. Nobody comes back in time, or we shut down: it is finished.
A stream that ended is kept too: its client may not have got the last messages. It alone has no place among the open streams.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from daemon.errors import CLOSE_POLICY, PeerError

_HAND_OVER_S: Final = 5.0
"""How long a connection that is given up may take to let go of its stream."""
ENDED_KEPT: Final = 256
"""Streams that have ended and wait for their clients, at most: whoever begins and ends streams in a row fills no memory."""


class Parkable(Protocol):
    """What is parked: a stream."""

    scoring: "asyncio.Task[None]"

    def detach(self) -> None:
        """Has no connection from here on."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A stream without a connection.

    Attributes:
        stream: it.
        owner: whoever streamed; nobody else may go on with it.
        kept: what else the connection knew.
        finish: ends the stream if nobody comes back; None where it has ended.
    """

    stream: Parkable
    owner: object
    kept: object
    finish: Callable[[], Awaitable[object]] | None


@dataclass(frozen=True, slots=True)
class _Connected:
    owner: object
    let_go: Callable[[], None]
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Parking:
    """The parked streams of the process, by their resume tokens.

    Args:
        window_s: how long a stream is parked.
        stopping: returns once streams are to be finished.
        emptied: called when the last one left.
    """

    def __init__(self, window_s: float, stopping: Callable[[], Awaitable[None]], emptied: Callable[[], None]) -> None:
        self.window_s = window_s
        self._stopping = stopping
        self._emptied = emptied
        self._places: dict[str, tuple[Parked, asyncio.Task[None]]] = {}
        self._finishing = 0
        self._connected: dict[str, _Connected] = {}

    def __len__(self) -> int:
        return len(self._places) + self._finishing

    @property
    def unfinished(self) -> int:
        """Those that have not ended: they hold what open streams hold."""
        return sum(parked.finish is not None for parked, _ in self._places.values()) + self._finishing

    @contextmanager
    def connected(self, token: str, owner: object, let_go: Callable[[], None]) -> Iterator[None]:
        """While a connection has a stream, its client may come back through another: ours may not know yet that it is dead.

        Args:
            token: of the stream.
            owner: whoever streams.
            let_go: asks the connection to park its stream.
        """
        connection = self._connected[token] = _Connected(owner, let_go)
        try:
            yield
        finally:
            del self._connected[token]
            connection.gone.set()

    def park(self, token: str, parked: Parked) -> None:
        """Keeps a stream for the client that has its token; of many that have ended, the one that waited longest goes."""
        parked.stream.detach()
        ended = [place for place, (other, _) in self._places.items() if other.finish is None]
        if parked.finish is None and len(ended) >= ENDED_KEPT:
            _, waiting = self._places.pop(ended[0])
            waiting.cancel()
        self._places[token] = parked, asyncio.create_task(self._wait(token, parked), name="parked")

    async def take(self, token: str, owner: object) -> Parked:
        """Gives a stream to the connection that goes on with it.

        Raises:
            PeerError: if there is none: the token is wrong, another's, its time is over, or another process has the stream.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HAND_OVER_S):
                # Again and again: while we wait, another connection of this client, dead by now, may have come before us.
                while (connection := self._connected.get(token)) is not None and connection.owner is owner:
                    connection.let_go()
                    await connection.gone.wait()
        parked, waiting = self._places.get(token, (None, None))
        if parked is None or waiting is None or parked.owner is not owner:
            raise PeerError(
                "unknown_resume",
                "no stream waits for this token: begin another, with the audio that is not settled",
                CLOSE_POLICY,
            )
        waiting.cancel()
        del self._places[token]
        self._left()
        return parked

    async def _wait(self, token: str, parked: Parked) -> None:
        stopping = asyncio.ensure_future(self._stopping())
        try:
            ends = {stopping} if parked.finish is None else {stopping, parked.stream.scoring}
            await asyncio.wait(ends, timeout=self.window_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        del self._places[token]
        self._finishing += 1
        try:
            if parked.finish is not None:
                await parked.finish()
        finally:
            self._finishing -= 1
            self._left()

    def _left(self) -> None:
        if not len(self):  # the last one
            self._emptied()
