"""The calls that the dashboard shows: folded from the common stream in Redis, so from every daemon that publishes to it.

One task reads for the whole process, from the first time that somebody looks: first the newest history, then what comes.
Twice a second those who watch are told which calls changed, once for all of them; one who does not read what he is told is
dropped and comes back for a fresh picture.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from daemon.calls.beside import beside
from daemon.calls.state import CallState
from daemon.calls.store import CallStore, fold
from daemon.calls.view import Json, analysis, raised, row, spoken
from daemon.channel import Channel, Overflow
from daemon.errors import CapacityError, UpstreamError
from daemon.events import read_events
from daemon.sinks.redis import DEFAULT_STREAMS, StreamSettings
from daemon.wire import DELETED

_log = logging.getLogger(__name__)

MAX_CALLS: Final = 500
"""Calls that are kept in view; beyond, those that changed longest ago go, ended ones first. Redis still has them."""
MAX_ROWS: Final = 200
MAX_WATCHERS: Final = 64
_OUTBOX: Final = 64
"""What waits for a slow watcher, half a minute of changes."""
_TICK_S: Final = 0.5
_CALM_S: Final = 5.0
"""Attention falls while nobody speaks: live calls are shown anew this often, changed or not."""
_RETRY_S: Final = 2.0
_NS_PER_MS: Final = 1_000_000


def now_ms() -> int:
    """Wall-clock milliseconds since the epoch."""
    return time.time_ns() // _NS_PER_MS


@dataclass(slots=True)
class Watcher:
    """Somebody who looks.

    Attributes:
        call: of which he wants all, besides the rows of all calls; "" for none.
        outbox: server-sent events for him.
    """

    call: str
    outbox: Channel[bytes] = field(default_factory=lambda: Channel(_OUTBOX, Overflow.REJECT))
    said: set[str] = field(default_factory=set)
    alerts: set[str] = field(default_factory=set)


class Board:
    """Calls in view.

    Args:
        store: Redis.
        dropped: told of every watcher that was dropped.
    """

    def __init__(self, store: CallStore, dropped: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self.problem: str | None = "not connected to Redis yet"
        self._told: str | None = self.problem
        self._dropped = dropped
        self._calls: dict[str, CallState] = {}
        self._dirty: set[str] = set()
        self._gone: set[str] = set()
        self._watchers: list[Watcher] = []
        self._wanted = asyncio.Event()
        self._ready = asyncio.Event()
        self._closed = False

    async def run(self, until: Awaitable[None]) -> None:
        """Reads and tells, for as long as the process serves; `until` ends what watchers are told."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._close_when(until))
            group.create_task(self._read_always())
            group.create_task(self._tell_always())

    async def ready(self) -> None:
        """Begins to read if nobody looked before; returns once the history is there.

        Raises:
            UpstreamError: if Redis cannot be read.
        """
        self._wanted.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), _RETRY_S)
        if self.problem is not None:
            raise UpstreamError(self.problem)

    @property
    def watchers(self) -> int:
        """How many look."""
        return len(self._watchers)

    def rows(self, limit: int = MAX_ROWS) -> list[Json]:
        """Calls by what needs attention: those that last before those that are over."""
        now = now_ms()
        found = [row(state, now) for state in self._calls.values()]
        found.sort(key=lambda one: (one["status"] != "live", -one["attention"], -one["updated_ms"]))
        return found[:limit]

    async def call(self, call: str) -> CallState | None:
        """A call with all that Redis has of it; None if it has nothing.

        Raises:
            UpstreamError: if Redis cannot be read.
        """
        found = await self.store.call(call)
        seen = self._calls.get(call)
        if found is not None and seen is not None:
            found.absorb(seen)  # the common stream is written first, so it may be ahead
            self._calls[call] = found
        return found

    def forget(self, call: str) -> None:
        """The call was deleted."""
        self._calls.pop(call, None)
        self._dirty.discard(call)
        self._gone.add(call)

    def check_room(self) -> None:
        """Looks whether one more may watch.

        Raises:
            CapacityError: if too many do.
        """
        if len(self._watchers) >= MAX_WATCHERS or self._closed:
            raise CapacityError(f"{len(self._watchers)} dashboards are open, the limit is {MAX_WATCHERS}")

    @contextmanager
    def watching(self, call: str = "") -> Iterator[Watcher]:
        """Somebody looks.

        Raises:
            CapacityError: if too many do.
        """
        self.check_room()
        watcher = Watcher(call)
        watcher.outbox.offer(server_sent("calls", {"calls": self.rows(), "problem": self.problem}))
        self._watchers.append(watcher)
        if (state := self._calls.get(call)) is not None:
            # What was said until now he reads for himself, once he is told of what comes: so he misses nothing.
            watcher.said = {":".join(map(str, one.key)) for one in state.said()}
            watcher.alerts = {one.event_id for one in state.alerts()}
        try:
            yield watcher
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    async def _close_when(self, until: Awaitable[None]) -> None:
        await until
        self._closed = True
        for watcher in self._watchers:
            await watcher.outbox.close()

    async def _read_always(self) -> None:
        await self._wanted.wait()
        while True:
            try:
                await self._read()
            except UpstreamError as error:
                self.problem = str(error)
                _log.warning("the dashboard cannot read calls: %s", error)
            await asyncio.sleep(_RETRY_S)

    async def _read(self) -> None:
        """Rebuilds recent calls, then follows the stream; does not end by itself."""
        self._calls.clear()
        last, entries = await self.store.history()
        for fields in entries:
            self._take(fields)
        self.problem = None
        self._ready.set()
        key = self.store.settings.events_key
        async with aclosing(read_events(self.store.url, key=key, start=last, on_change=self._tell_problem)) as coming:
            async for _, fields in coming:
                self._take(fields)

    def _tell_problem(self, problem: str | None) -> None:
        self.problem = None if problem is None else f"cannot reach Redis: {problem}"

    def _take(self, fields: dict[str, str]) -> None:
        call = fields.get("call", "")
        if fields.get("type") == DELETED:
            self.forget(call)
            return
        if not call:
            return
        state = self._calls.get(call) or CallState(call)
        if fold(state, fields) and state.sessions:
            self._calls[call] = state
            self._dirty.add(call)
            self._gone.discard(call)
            self._make_room()

    def _make_room(self) -> None:
        if len(self._calls) > MAX_CALLS:
            now = now_ms()
            oldest = min(self._calls.values(), key=lambda state: (state.status(now) == "live", state.updated_ms))
            self.forget(oldest.call)

    def _forget_expired(self, now: int) -> None:
        """What Redis does not keep any more, we do not show any more."""
        kept_ms = self.store.settings.call_ttl_s * 1000
        over = [call for call, state in self._calls.items() if state.status(now) != "live"]
        for call in over:
            if kept_ms and now - self._calls[call].updated_ms > kept_ms:
                self.forget(call)

    async def _tell_always(self) -> None:
        calmed = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TICK_S)
            if loop.time() - calmed >= _CALM_S:
                calmed = loop.time()
                now = now_ms()
                self._forget_expired(now)
                self._dirty |= {call for call, state in self._calls.items() if state.status(now) == "live"}
            await self._tell()

    async def _tell(self) -> None:
        """Tells everybody what changed; what nobody watches costs nothing."""
        dirty, gone = self._dirty, self._gone
        self._dirty, self._gone = set(), set()
        if self.problem != self._told:
            self._told = self.problem
            for watcher in self._watchers:
                watcher.outbox.offer(server_sent("problem", {"problem": self.problem}))
        if not self._watchers or not (dirty or gone):
            return
        now = now_ms()
        rows = [row(self._calls[call], now) for call in dirty if call in self._calls]
        changed = server_sent("changed", {"calls": rows, "gone": sorted(gone)})
        for watcher in list(self._watchers):
            taken = watcher.outbox.offer(changed)
            if taken and watcher.call in dirty and watcher.call in self._calls:
                taken = watcher.outbox.offer(self._news(watcher, self._calls[watcher.call], now))
            if not taken:
                self._watchers.remove(watcher)
                self._dropped()
                await watcher.outbox.close()

    def _news(self, watcher: Watcher, state: CallState, now: int) -> bytes:
        """What the watched call has that its watcher was not told yet."""
        said = [spoken(one) for one in state.said()]
        alerts = [raised(one) for one in state.alerts()]
        news = {
            "call": state.call,
            "said": [one for one in said if one["key"] not in watcher.said],
            "raised": [one for one in alerts if one["event_id"] not in watcher.alerts],
            "analysis": analysis(state, now),
        }
        watcher.said = {one["key"] for one in said}
        watcher.alerts = {one["event_id"] for one in alerts}
        return server_sent("said", news)


@asynccontextmanager
async def running_board(
    url: str,
    until: Callable[[], Awaitable[None]],
    dropped: Callable[[], None],
    settings: StreamSettings = DEFAULT_STREAMS,
) -> AsyncIterator[Board]:
    """A board over the Redis at `url`, where streams are kept as `settings` say; see `Board`."""
    store = CallStore(url, settings)
    try:
        board = Board(store, dropped)
        async with beside(board.run(until()), "dashboard"):
            yield board
    finally:
        await store.close()


def server_sent(event: str, data: Any) -> bytes:
    """One server-sent event (HTML standard, 9.2). JSON has no line breaks of its own."""
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n".encode()
