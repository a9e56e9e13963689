"""The end of calls whose daemon was killed: daemons write down whose streams they serve, and the living end those of the dead.

    {medusa:events}:open           hash: session -> its call, roles, bundle, and the daemon that serves it
    {medusa:events}:alive:DAEMON   is there as long as the daemon renews it
    {medusa:events}:ending:DAEMON  somebody is ending the streams of a dead one

A stream is written down when it begins, and crossed out once Redis has its end. Whoever finds one of a daemon that has not
renewed itself for `Times.lease_s`, and then for `Times.grace_s` more, publishes `call.failed` with the reason `lost`, and the
summary where it was the last stream of its call, from what Redis has of it. An end that is there already is only crossed out.

While we cannot reach Redis ourselves we declare nobody dead, and begin to wait anew when we can: the others were as cut off.
A daemon that stood still or was cut off alone for longer than that is taken for dead all the same; what its streams say later
follows their `call.failed`, up to an end of their own.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
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
_LAST_WRITE_S: Final = 2.0
_SOON_S: Final = 0.25
"""Until it is looked again whether Redis has an end that waited in the sink."""
_AT_ONCE: Final = 32
"""Calls that are looked at between two beats: each is read from Redis first."""
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
    except (KeyError, TypeError, ValueError):
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
        self._problem = ""

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

    async def run(self) -> None:
        """Renews, writes down and looks, for ever."""
        loop = asyncio.get_running_loop()
        beat = loop.time()
        while True:
            due = loop.time() >= beat
            try:
                await self._write(everything=due)
                if due:
                    self._tell(await self._look())
            except (RedisError, OSError) as error:
                self._missed.clear()
                self._tell(f"{type(error).__name__}: {error}")
            if due:
                beat = loop.time() + self._times.beat_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(beat, loop.time() + _SOON_S) if self._over else beat):
                    await self._changed.wait()
            self._changed.clear()

    async def close(self) -> None:
        """Crosses out what has ended, and says that we are gone; what has not ended is left to the others."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_S):
                await self._write(everything=False)
                await self._client.delete(self._settings.alive_key(self.daemon))
        await self._client.aclose()

    async def _write(self, *, everything: bool) -> None:
        written: dict[Any, Any] = {
            session: known.written()
            for session, known in self._open.items()
            if everything or session in self._unwritten
        }
        over = set() if self._sink.waiting else set(self._over)
        key, lease_ms = self._settings.open_key, round(self._times.lease_s * 1000)
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.set(self._settings.alive_key(self.daemon), "", px=lease_ms)
            if written:
                pipeline.hset(key, mapping=written)
            if over:
                pipeline.hdel(key, *over)
            await pipeline.execute()
        self._unwritten -= written.keys()
        self._over -= over

    async def _look(self) -> str:
        """Ends the streams of those who have been missed for long enough; what is in the way of it, "" for nothing."""
        answer: Any = await self._client.hgetall(self._settings.open_key)
        found = {session: known for session, text in answer.items() if (known := read_open(text)) is not None}
        others = sorted({known.daemon for known in found.values()} - {self.daemon})
        async with self._client.pipeline(transaction=False) as pipeline:
            for daemon in others:
                pipeline.exists(self._settings.alive_key(daemon))
            there = await pipeline.execute() if others else []
        now = asyncio.get_running_loop().time()
        self._missed = {
            daemon: self._missed.get(daemon, now) for daemon, alive in zip(others, there, strict=True) if not alive
        }
        dead = [daemon for daemon, since in self._missed.items() if now - since >= self._times.grace_s]
        ours = {daemon for daemon in dead if await self._is_ours(daemon)}
        calls: dict[str, dict[str, Open]] = {}
        for session, known in found.items():
            if known.daemon in ours and session not in self._over:
                calls.setdefault(known.call, {})[session] = known
        problem = ""
        for call, streams in list(calls.items())[:_AT_ONCE]:
            try:
                await self._end(call, streams)
            except UpstreamError as error:  # one call that cannot be read must not keep the others from their end
                problem = str(error)
        return problem

    async def _is_ours(self, daemon: str) -> bool:
        """Whether the streams of a dead daemon are ours to end, and nobody else's."""
        key, lease_ms = self._settings.ending_key(daemon), round(self._times.lease_s * 1000)
        taken = await self._client.set(key, self.daemon, nx=True, px=lease_ms)
        return bool(taken) or await self._client.get(key) == self.daemon

    async def _end(self, call: str, streams: Mapping[str, Open]) -> None:
        """Ends streams of one call, and sums it up where no other is open."""
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

    def _tell(self, problem: str) -> None:
        """Logs where it changed."""
        if problem and problem != self._problem:
            _log.warning("the streams of dead daemons are not looked after: %s", problem)
        self._problem = problem


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
        async with beside(leases.run(), "leases"):
            yield leases
    finally:
        await leases.close()
        await store.close()
