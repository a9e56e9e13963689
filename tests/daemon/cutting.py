"""A network between a client and a daemon that a test can cut, or leave hanging."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Network:
    """Forwards TCP connections to a port.

    Attributes:
        port: where clients connect.
        connections: that were made.
        up: whether new ones are taken.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = 0
        self.up = True
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._stalled: set[asyncio.Task[None]] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Resets every connection: neither side says goodbye."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """What is open carries nothing from here on, in either direction, and stays open."""
        for pump in self._pumps:
            pump.cancel()
        self._stalled |= self._pumps
        self._pumps = set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, back}
        self._writers |= pair
        pumps = {asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(there, writer))}
        self._pumps |= pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        if not pumps & self._stalled:
            for end in pair:
                end.transport.abort()
        await asyncio.wait(pumps)
        self._pumps -= pumps


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def network(target: int) -> AsyncIterator[Network]:
    """A network to `target` on this machine."""
    made = Network(target)
    async with await asyncio.start_server(made._forward, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made
        made.cut()
