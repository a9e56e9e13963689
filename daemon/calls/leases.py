"""The end of calls whose daemon was killed: daemons write down whose streams they serve, and the living end those of the dead.

    {medusa:events}:open           hash: session -> its call, roles, bundle, and the daemon that serves it
    {medusa:events}:alive:DAEMON   is there as long as the daemon renews it
    {medusa:events}:ending:DAEMON  somebody is ending the streams of a dead one

A stream is written down when it begins, and crossed out once Redis has its end. Whoever finds one of a daemon that has not
renewed itself for `Times.lease_s`, and then for `Times.grace_s` more, publishes `call.failed` with the reason `lost`, and the
summary where it was the last stream of its call, from what Redis has of it. An end that is there already is only crossed out.

Renewing and looking are two tasks, so that nothing that is in the way of looking has us taken for dead. While we cannot reach
Redis we declare nobody dead, and begin to wait anew when we can: the others were as cut off. A daemon that stood still or was
cut off alone for longer than that is taken for dead all the same; what its streams say later follows their `call.failed`, up to
an end of their own.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from daemon.calls.beside import beside
from daemon.calls.state import CallState
from daemon.calls.store import CallStore
from daemon.calls.tracker import summary_of
from daemon.errors import UpstreamError
from daemon.interfaces import Sink
from daemon.messages import CallEvent, CallInfo, Event, Totals
from daemon.sinks.redis import DEFAULT_STREAMS, StreamSettings, connect
from daemon.wire import redis_fields
from model.audio import SAMPLES_PER_MS

_log = logging.getLogger(__name__)

LOST: Final = "lost"
"""Why a stream of a dead daemon ended."""
_REPLY_S: Final = 5.0
_PAGE: Final = 500
_LAST_WRITE_S: Final = 2.0
_SOON_S: Final = 0.25
"""Until it is looked again whether Redis has an end that waited in the sink."""
_ENDING_S: Final = 60.0
"""How long the ending of a dead daemon's streams is ours, from the last of its calls that we have looked at."""
_FORGOTTEN: Final = 10_000
"""Ends that could not be crossed out, at most; the look at our own entries finds the others."""
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Times:
    """How long a daemon may be silent.

    Attributes:
        beat_s: between two renewals, and between two looks at the others.
        lease_s: a daemon that has not renewed itself for so long is missed.
        grace_s: one that has been missed for so long is dead.
    """

    beat_s: float = 10.0
    lease_s: float = 30.0
    grace_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Open:
    """A stream as it is written down."""

    daemon: str
    call: str
    roles: tuple[str, ...]
    model: str

    def written(self) -> str:
        """As Redis has it."""
        return json.dumps({"daemon": self.daemon, "call": self.call, "roles": self.roles, "model": self.model})


def read_open(text: str) -> Open | None:
    """A stream that was written down; None where it is none of ours."""
    try:
        found = json.loads(text)
        return Open(str(found["daemon"]), str(found["call"]), tuple(map(str, found["roles"])), str(found["model"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


class Leases:
    """What this daemon has written down of its streams, and its look at those of others.

    Args:
        url: as the sink's.
        sink: takes the ends of lost streams; to be told of here as of all others (`observe`).
        store: what Redis has of their calls.
        lost: told of each stream that was ended for a dead daemon.
        settings: as the sink's.
        times: how long a daemon may be silent.
    """

    def __init__(
        self,
        url: str,
        sink: Sink,
        store: CallStore,
        lost: Callable[[], None] = lambda: None,
        settings: StreamSettings = DEFAULT_STREAMS,
        times: Times = Times(),
    ) -> None:
        self.daemon = uuid.uuid4().hex
        self._sink = sink
        self._store = store
        self._lost = lost
        self._settings = settings
        self._times = times
        self._client: Redis = connect(url, reply_timeout_s=_REPLY_S)
        self._open: dict[str, Open] = {}
        self._unwritten: set[str] = set()
        self._over: set[str] = set()
        """Sessions with an end, to be crossed out once Redis has it."""
        self._missed: dict[str, float] = {}
        """Daemons that are missed, since when on the loop's clock."""
        self._changed = asyncio.Event()
        self._problems: dict[str, str] = {}

    def observe(self, event: Event) -> None:
        """Takes note of a stream that begins or ends; called behind its publication, never blocks."""
        if not isinstance(event, CallEvent):
            return
        session, info = event.info.session, event.info
        if event.type == "call.started":
            self._open[session] = Open(self.daemon, info.call, info.roles, info.model)
            self._unwritten.add(session)
        else:
            self._open.pop(session, None)
            self._unwritten.discard(session)
            self._over.add(session)
        self._changed.set()

    async def renew(self) -> None:
        """Renews, and writes down what begins and ends, for ever."""
        loop = asyncio.get_running_loop()
        beat = loop.time()
        while True:
            due = loop.time() >= beat
            if not await self._tried("streams are not written down", self._write(everything=due)):
                await asyncio.sleep(self._times.beat_s)
                beat = loop.time()
                continue
            if due:
                beat = loop.time() + self._times.beat_s
            if len(self._over) > _FORGOTTEN:
                self._over.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(beat, loop.time() + _SOON_S) if self._over else beat):
                    await self._changed.wait()
            self._changed.clear()

    async def look(self) -> None:
        """Looks at the others, for ever, and ends what the dead among them have left."""
        while True:
            if not await self._tried("the streams of dead daemons are not looked after", self._end_what_is_left()):
                self._missed.clear()
            await asyncio.sleep(self._times.beat_s)

    async def close(self) -> None:
        """Crosses out what has ended, and says that we are gone; what has not ended is left to the others."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_S):
                await self._write(everything=False)
                await self._client.delete(self._settings.alive_key(self.daemon))
        await self._client.aclose()

    async def _tried(self, otherwise: str, work: Awaitable[None]) -> bool:
        """Whether the work could be done; logs where that changed, and what follows."""
        problem = ""
        try:
            await work
        except Exception as error:  # the boundary, one per beat: who does not go on renewing is taken for dead
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problems.get(otherwise):
                _log.warning("%s: %s", otherwise, problem)
        self._problems[otherwise] = problem
        return not problem

    async def _write(self, *, everything: bool) -> None:
        written: dict[Any, Any] = {
            session: known.written()
            for session, known in self._open.items()
            if everything or session in self._unwritten
        }
        over = set() if self._sink.waiting else set(self._over)
        key, settings = self._settings.open_key, self._settings
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.set(settings.alive_key(self.daemon), "", px=round(self._times.lease_s * 1000))
            if written:
                pipeline.hset(key, mapping=written)
            if over:
                pipeline.hdel(key, *over)
            if settings.call_ttl_s:
                pipeline.expire(key, settings.call_ttl_s)
            await pipeline.execute()
        self._unwritten -= written.keys()
        self._over -= over

    async def _end_what_is_left(self) -> None:
        """Ends the streams of those who have been missed for long enough, and crosses out our own that are over.

        Raises:
            UpstreamError: if calls could not be read; all the others are ended.
        """
        found: dict[str, Open] = {}
        async for session, text in self._client.hscan_iter(self._settings.open_key, count=_PAGE):
            if (known := read_open(text)) is not None:
                found[session] = known
        await self._note_who_is_missed({known.daemon for known in found.values()} - {self.daemon})
        now = asyncio.get_running_loop().time()
        dead = {daemon for daemon, since in self._missed.items() if now - since >= self._times.grace_s}
        calls: dict[str, dict[str, Open]] = {}
        for session, known in found.items():
            over = (
                known.daemon == self.daemon and session not in self._open
            )  # Redis has forgotten that we crossed it out
            if session not in self._over and (known.daemon in dead or over):
                calls.setdefault(known.call, {})[session] = known
        failed = None
        for call, streams in calls.items():
            mine = {session: known for session, known in streams.items() if await self._is_ours(known.daemon)}
            try:
                await self._end(call, mine)
            except UpstreamError as error:  # it must not keep the others from their end
                failed = error
        if failed is not None:
            raise failed

    async def _note_who_is_missed(self, others: set[str]) -> None:
        names = sorted(others)
        async with self._client.pipeline(transaction=False) as pipeline:
            for daemon in names:
                pipeline.exists(self._settings.alive_key(daemon))
            there = await pipeline.execute() if names else []
        now = asyncio.get_running_loop().time()
        missed = [daemon for daemon, alive in zip(names, there, strict=True) if not alive]
        self._missed = {daemon: self._missed.get(daemon, now) for daemon in missed}

    async def _is_ours(self, daemon: str) -> bool:
        """Whether it is for us, and for nobody else, to end a daemon's streams: only who can deliver an end takes it on."""
        if daemon == self.daemon:
            return not self._sink.waiting
        if self._sink.healthy() is not None:
            return False
        key, ending_ms = self._settings.ending_key(daemon), round(_ENDING_S * 1000)
        if await self._client.set(key, self.daemon, nx=True, px=ending_ms):
            return True
        ours: bool = await self._client.get(key) == self.daemon
        if ours:
            await self._client.pexpire(key, ending_ms)
        return ours

    async def _end(self, call: str, streams: Mapping[str, Open]) -> None:
        """Ends streams of one call, and sums it up where no other is open."""
        if not streams:
            return
        state, last = await self._store.call(call), None
        for session, known in streams.items():
            if state is None or session not in state.sessions or state.sessions[session].end is not None:
                self._over.add(session)
                continue
            last = _lost_event(state, session, known)
            state.fold(redis_fields(last))
            _log.warning("session %s is ended: its daemon was lost", session)
            self._sink.publish(last)
            self._lost()
        if state is not None and last is not None and not state.open_sessions:
            self._sink.publish(summary_of(state, last))


def _lost_event(state: CallState, session: str, known: Open) -> CallEvent:
    """The end of a stream, as far as Redis knows it: at least so much was received, and so many utterances found."""
    said = [one for one in state.said() if one.key[0] == session]
    offset_ms = state.sessions[session].begun_ms - state.begun_ms
    last: dict[int, int] = {}
    for _, channel, utterance in (one.key for one in said):
        last[channel] = max(last.get(channel, -1), utterance)
    return CallEvent(
        type="call.failed",
        info=CallInfo(known.call, session, known.roles, known.model, metadata=dict(state.metadata)),
        totals=Totals(
            received_samples=round((max((one.end_ms for one in said), default=offset_ms) - offset_ms) * SAMPLES_PER_MS),
            utterances=sum(index + 1 for index in last.values()),
            finals=len(said),
        ),
        reason=LOST,
        created_ms=time.time_ns() // _NS_PER_MS,
    )


@asynccontextmanager
async def running_leases(
    url: str, sink: Sink, lost: Callable[[], None], settings: StreamSettings = DEFAULT_STREAMS, times: Times = Times()
) -> AsyncIterator[Leases]:
    """Leases that are renewed while the body runs; see `Leases`."""
    store = CallStore(url, settings)
    leases = Leases(url, sink, store, lost, settings, times)
    try:
        async with beside(leases.renew(), "leases"), beside(leases.look(), "look at dead daemons"):
            yield leases
    finally:
        await leases.close()
        await store.close()
