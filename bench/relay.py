"""A stretch of network between a WebSocket client and a daemon that is slow, or goes silent without a word."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_READ: Final = 16_384
_IN_FLIGHT: Final = 256
"""Reads that are on the way at a time: more are not taken, as a network takes no more."""


class Relay:
    """Forwards TCP connections to a port of this machine, in order and whole, as long as it is not silent.

    Args:
        target: the port.
        delay_s: how long everything takes, in each direction.
        jitter_s: how much longer it may take, each time by another part of it; what comes behind waits, as with TCP.
        seed: of the chance.

    Attributes:
        port: where clients connect.
    """

    def __init__(self, target: int, delay_s: float = 0.0, jitter_s: float = 0.0, seed: int = 0) -> None:
        self.port = 0
        self._target = target
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._chance = random.Random(seed)
        self._silent = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def go_silent(self) -> None:
        """From here on nothing passes, in either direction, and every connection stays open: as when a cable is pulled."""
        self._silent.set()

    def hang_up(self) -> None:
        """Resets every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        ways = {asyncio.create_task(self._pump(*way)) for way in ((reader, back), (there, writer))}
        silence, over = asyncio.create_task(self._silent.wait()), False
        while ways and not over:
            done, _ = await asyncio.wait({*ways, silence}, return_when=asyncio.FIRST_COMPLETED)
            ways -= done
            over = silence in done or not all(way.result() for way in done if way is not silence)
        for task in (*ways, silence):
            task.cancel()
        await asyncio.wait({*ways, silence})
        if not self._silent.is_set():
            for end in (writer, back):
                end.close()

    async def finish(self) -> None:
        """Resets every connection, and returns once nothing of them is left."""
        self.hang_up()
        while self._serving:
            await asyncio.wait(self._serving)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One direction: what is read is written when it is due, and then its end; whether that could be done."""
        loop = asyncio.get_running_loop()
        way: deque[tuple[float, bytes]] = deque()
        changed = asyncio.Condition()

        async def take() -> None:
            due, data = 0.0, b"-"
            while data:
                try:
                    data = await reader.read(_READ)
                except ConnectionError:
                    data = b""
                due = max(due, loop.time() + self._delay_s + self._chance.uniform(0, self._jitter_s))
                async with changed:
                    await changed.wait_for(lambda: len(way) < _IN_FLIGHT)
                    way.append((due, data))
                    changed.notify_all()

        async def give() -> None:
            while True:
                async with changed:
                    await changed.wait_for(lambda: way)
                    due, data = way.popleft()
                    changed.notify_all()
                await asyncio.sleep(due - loop.time())
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        taking = asyncio.create_task(take())
        try:
            await give()
            writer.write_eof()
        except OSError:
            return False
        else:
            return True
        finally:
            taking.cancel()
            await asyncio.wait({taking})


@asynccontextmanager
async def relay(target: int, delay_s: float = 0.0, jitter_s: float = 0.0, seed: int = 0) -> AsyncIterator[Relay]:
    """A relay to `target`, for as long as the `async with` lasts."""
    made = Relay(target, delay_s, jitter_s, seed)
    server = await asyncio.start_server(made.forward, "127.0.0.1", 0)
    try:
        made.port = server.sockets[0].getsockname()[1]
        yield made
    finally:
        server.close()
        await made.finish()
