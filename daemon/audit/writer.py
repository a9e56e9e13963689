"""Writes audit entries to the stream `medusa:audit`, beside the work and never in its way.

Best effort: what Redis does not take within the room of the outbox, or before we end, is lost and counted.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import takewhile
from typing import Any, Final

from redis.exceptions import RedisError

from daemon.audit.entries import AuditSettings, Entries, Kind
from daemon.calls.beside import beside
from daemon.sinks.redis import connect

_log = logging.getLogger(__name__)

AUDIT_KEY: Final = "medusa:audit"
_BATCH: Final = 64
_REPLY_S: Final = 5.0
_PAUSE_S: Final = 2.0
_LAST_WORDS_S: Final = 2.0


class Audit:
    """An `Auditor` that writes to Redis. `run` must run beside it.

    Args:
        url: of Redis.
        settings: how entries are written.
        key: of the stream.

    Raises:
        ConfigError: if `url` is no Redis URL.
    """

    def __init__(self, url: str, settings: AuditSettings, key: str = AUDIT_KEY) -> None:
        self._settings = settings
        self._key = key
        self._client = connect(url, reply_timeout_s=_REPLY_S)
        self._entries = Entries(settings, lambda: time.time_ns() // 1_000_000)
        self._arrived = asyncio.Event()
        self._ending = asyncio.Event()
        self._problem: str | None = None

    @property
    def lost(self) -> int:
        """Entries that did not get into Redis, so far."""
        return self._entries.lost

    @property
    def waiting(self) -> int:
        """Entries that Redis has not taken yet."""
        return len(self._entries)

    def note(self, kind: Kind, /, **fields: str) -> None:
        """An entry; never blocks."""
        self._entries.note(kind, fields.items())
        self._arrived.set()

    def tally(self, kind: Kind, /, **fields: str) -> None:
        """An entry at once, or a count in the next one; never blocks."""
        self._entries.tally(kind, fields.items())
        self._arrived.set()

    async def run(self) -> None:
        """Writes until `close`."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._settings.window_s
        while not self._ending.is_set():
            await _within(self._arrived, due - loop.time())
            self._arrived.clear()
            if loop.time() >= due:
                self._entries.settle()
                due = loop.time() + self._settings.window_s
            if not await self._write():
                await _within(self._ending, _PAUSE_S)
                self._arrived.set()
        self._entries.settle()
        await self._write()

    async def close(self, running: "asyncio.Task[None]") -> None:
        """Ends `run`, which is `running`; what it cannot write quickly is lost."""
        self._ending.set()
        self._arrived.set()
        await asyncio.wait({running}, timeout=_LAST_WORDS_S)
        if count := self._entries.give_up():
            _log.warning("%d audit entries are lost: Redis did not take them", count)

    async def disconnect(self) -> None:
        """Frees the connection."""
        await self._client.aclose()

    async def _write(self) -> bool:
        """Writes what waits; whether Redis took all of it."""
        while batch := self._entries.next(_BATCH):
            try:
                async with self._client.pipeline(transaction=False) as pipeline:
                    for fields in batch:
                        entry: Any = fields
                        pipeline.xadd(self._key, entry, maxlen=self._settings.maxlen, approximate=True)
                    results: list[Any] = await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                results = [error]
            taken = sum(1 for _ in takewhile(lambda result: not isinstance(result, Exception), results))
            self._entries.written(taken)
            if taken < len(batch):
                self._tell(results[taken])
                return False
        self._tell(None)
        return True

    def _tell(self, error: Exception | None) -> None:
        """Logs where it changed."""
        problem = None if error is None else f"{type(error).__name__}: {error}"
        if problem != self._problem:
            _log.log(
                logging.INFO if problem is None else logging.WARNING,
                "%s",
                "Redis takes audit entries" if problem is None else f"Redis takes no audit entries: {problem}",
            )
        self._problem = problem


async def _within(event: asyncio.Event, timeout_s: float) -> None:
    """Waits for the event, but no longer than that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


@asynccontextmanager
async def running_audit(url: str, settings: AuditSettings) -> AsyncIterator[Audit]:
    """An audit that writes to the Redis at `url` until the block ends."""
    audit = Audit(url, settings)
    try:
        async with beside(audit.run(), "audit") as running:
            try:
                yield audit
            finally:
                await audit.close(running)
    finally:
        await audit.disconnect()
