"""What Redis holds of calls: read in pages, so that neither side stops for long, and deleted."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from daemon.calls.state import CallState
from daemon.errors import UpstreamError
from daemon.sinks.redis import DEFAULT_STREAMS, StreamSettings, connect
from daemon.wire import DELETED, deletion_fields

_REPLY_S: Final = 5.0
_PAGE: Final = 500
_NS_PER_MS: Final = 1_000_000

MAX_HISTORY: Final = 20_000
"""Entries of the common stream, the newest ones, from which recent calls are rebuilt at the start."""
MAX_ENTRIES: Final = 20_000
"""Entries of a call that are read, the newest ones: more than two hours with interim results every second."""

Entry = tuple[str, dict[str, str]]


class CallStore:
    """The calls in one Redis.

    Args:
        url: as the sink's.
        settings: as the sink's.
    """

    def __init__(self, url: str, settings: StreamSettings = DEFAULT_STREAMS) -> None:
        self.url = url
        self.settings = settings
        self._client: Redis = connect(url, reply_timeout_s=_REPLY_S)

    async def close(self) -> None:
        """Frees the connections."""
        await self._client.aclose()

    async def history(self) -> tuple[str, list[dict[str, str]]]:
        """The newest entries of the common stream but for interim results, oldest first, and the id of the last entry.

        Raises:
            UpstreamError: if Redis cannot be read.
        """
        return await self._newest(self.settings.events_key, MAX_HISTORY)

    async def call(self, call: str) -> CallState | None:
        """A call as far as Redis has it; None if it has nothing of it.

        Raises:
            UpstreamError: if Redis cannot be read.
        """
        state = CallState(call)
        _, entries = await self._newest(self.settings.call_key(call), MAX_ENTRIES)
        for fields in entries:
            fold(state, fields)
        return state if state.sessions else None

    async def delete(self, call: str) -> int:
        """Deletes a call's stream and its entries in the common one; how many entries that were, in both.

        A `call.deleted` entry then tells every other reader to forget the call. The seen keys stay until they expire, so that
        a delivery that comes late adds nothing: they hold no more than the session's id.

        Raises:
            UpstreamError: if Redis cannot be reached, or refuses.
        """
        key = self.settings.call_key(call)
        async with self._telling("delete the call"):
            count = int(await self._client.xlen(key))
            await self._client.delete(key)
            after = "-"
            while page := _entries(await self._client.xrange(self.settings.events_key, after, "+", count=_PAGE)):
                mine = [entry for entry, fields in page if fields.get("call") == call and fields.get("type") != DELETED]
                if mine:
                    count += int(await self._client.xdel(self.settings.events_key, *mine))
                after = f"({page[-1][0]}"
            if count:
                fields: Any = deletion_fields(call, time.time_ns() // _NS_PER_MS)
                await self._client.xadd(self.settings.events_key, fields)
        return count

    async def _newest(self, key: str, limit: int) -> tuple[str, list[dict[str, str]]]:
        """Interim results are passed over: they are most of a stream, and nothing once their final is there."""
        found: list[dict[str, str]] = []
        last, before = "0-0", "+"
        async with self._telling(f"read the stream {key!r}"):
            for read in range(0, limit, _PAGE):
                page = _entries(await self._client.xrevrange(key, before, "-", count=_PAGE))
                if read == 0 and page:
                    last = page[0][0]
                found += [fields for _, fields in page if fields.get("type") != "emotion.interim"]
                if len(page) < _PAGE:
                    break
                before = f"({page[-1][0]}"
        return last, found[::-1]

    @asynccontextmanager
    async def _telling(self, what: str) -> AsyncGenerator[None, None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise UpstreamError(f"cannot {what}: {type(error).__name__}: {error}") from error


def _entries(answer: Any) -> list[Entry]:
    """redis-py's types allow for more than a client that decodes can give."""
    return list(answer or ())


def fold(state: CallState, fields: dict[str, str]) -> bool:
    """Takes an entry into a call; what is none of ours changes nothing."""
    try:
        return state.fold(fields)
    except (KeyError, ValueError):
        return False
