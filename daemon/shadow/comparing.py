"""Shadow mode: a second bundle scores what the first one has scored, and nobody but the operator sees the difference.

    result published ──> observe ──> wait for room ──> shadow's engine ──> medusa:shadow, metrics

It is told of results behind their publication, so it can neither hold one up nor change it. It scores one utterance at a time,
and begins with none while a result is being scored or the engine has little room. What there is no room for is left out,
and counted. Its threads have the priority of all others: one of low priority would hold Python's lock for longer.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from redis.exceptions import RedisError

from daemon.asr import Heard
from daemon.audit.retention import keep_trimmed
from daemon.calls.beside import beside
from daemon.emotion import EmotionItem
from daemon.engine import Engine
from daemon.errors import UpstreamError
from daemon.fleet.store import end_if_cancelled
from daemon.messages import CallEvent, CallInfo, EmotionEvent, Event, Utterance
from daemon.metrics import Metrics
from daemon.shadow.counts import ShadowCounts
from daemon.shadow.entry import SHADOW_KEY, Compared, shadow_fields
from daemon.sinks.redis import connect
from model.adaptation import NO_HISTORY, History
from model.audio import MIN_UTTERANCE, bucket_length
from model.bundle import Bundle, graph_file
from model.posteriors import Posteriors

_log = logging.getLogger(__name__)

_MOST_WAITING: Final = 16
"""Utterances that wait for room, each with its audio and Whisper's frames: 5 MB for one of 30 s."""
_LOOK_AGAIN_S: Final = 0.25
"""The engine's load falls while nothing happens."""
_REPLY_S: Final = 5.0
_PAGE: Final = 500


@dataclass(slots=True)
class _Session:
    """What the shadow knows of a stream, by channel."""

    histories: dict[int, History] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    """The first utterance of a channel that it did not score."""
    heard: dict[int, tuple[Utterance, Heard]] = field(default_factory=dict)
    """What the first bundle's Whisper made of the utterance that is scored now."""


@dataclass(frozen=True, slots=True)
class _Job:
    event: EmotionEvent
    session: _Session
    heard: Heard | None


class Shadow:
    """Compares; `run` must run beside it.

    Args:
        engine: of the shadow bundle.
        room: whether nothing else is to be done.
        url: of Redis.
        metrics: where it counts.
        maxlen: entries that its stream keeps, approximately.

    Raises:
        ConfigError: if `url` is no Redis URL.
    """

    def __init__(self, engine: Engine, room: Callable[[], bool], url: str, metrics: Metrics, maxlen: int) -> None:
        self._engine = engine
        self._room = room
        self._client = connect(url, reply_timeout_s=_REPLY_S)
        self._maxlen = maxlen
        self._sessions: dict[str, _Session] = {}
        self._waiting: deque[_Job] = deque()
        self._changed = asyncio.Event()
        self._busy = asyncio.Lock()
        self._same_ears: dict[str, bool] = {}
        """By bundle id, whether that bundle hears as ours does."""
        self._counts = ShadowCounts(metrics, lambda: len(self._waiting))

    def hears(self, bundle: Bundle, info: CallInfo, utterance: Utterance, heard: Heard) -> None:
        """Takes over what another engine's Whisper made of a final utterance, where ours would make the same of it."""
        if bundle.id not in self._same_ears:
            self._same_ears[bundle.id] = same_ears(bundle, self._engine.models.bundle)
        if self._same_ears[bundle.id]:
            self._session(info).heard[utterance.channel] = utterance, heard

    def observe(self, event: Event) -> None:
        """Takes note of what was published; never blocks."""
        if isinstance(event, EmotionEvent) and event.utterance.final:
            self._offer(event)
        elif isinstance(event, CallEvent) and event.type != "call.started":
            self._sessions.pop(event.info.session, None)
        self._changed.set()

    def _session(self, info: CallInfo) -> _Session:
        return self._sessions.setdefault(info.session, _Session())

    def _offer(self, event: EmotionEvent) -> None:
        session, channel = self._session(event.info), event.utterance.channel
        of, heard = session.heard.pop(channel, (None, None))
        if len(self._waiting) >= _MOST_WAITING:
            session.lost.setdefault(channel, event.utterance.index)
            self._counts.lost.labels("full").inc()
            return
        # Work ahead that came to nothing leaves frames of a shorter cut.
        mine = of is not None and (of.start, of.end) == (event.utterance.start, event.utterance.end)
        self._waiting.append(_Job(event, session, heard if mine else None))

    async def run(self) -> None:
        """Scores until it is cancelled."""
        while True:
            end_if_cancelled()
            while not (self._waiting and self._room()):
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S if self._waiting else None):
                        await self._changed.wait()
            async with self._busy:
                if self._waiting:  # its call may have been deleted
                    await self._handle(self._waiting.popleft())

    async def forget(self, call: str) -> None:
        """Deletes what is kept of a call, which was deleted.

        Raises:
            UpstreamError: if Redis cannot be reached, or refuses.
        """
        async with self._busy:
            self._waiting = deque(job for job in self._waiting if job.event.info.call != call)
            after = "-"
            try:
                while page := await self._page(after):
                    mine = [entry for entry, fields in page if fields.get("call") == call]
                    if mine:
                        await self._client.xdel(SHADOW_KEY, *mine)
                    after = f"({page[-1][0]}"
            except (RedisError, OSError) as error:
                raise UpstreamError(f"cannot delete the call from {SHADOW_KEY}: {error}") from error

    async def _page(self, after: str) -> list[tuple[str, dict[str, str]]]:
        page: Any = await self._client.xrange(SHADOW_KEY, after, "+", count=_PAGE)
        return list(page or ())

    async def close(self) -> None:
        """Frees the connection."""
        await self._client.aclose()

    async def _handle(self, job: _Job) -> None:
        utterance = job.event.utterance
        try:
            posteriors = await self._score(job)
        except Exception as error:  # the boundary, one per utterance: what the shadow does wrong concerns nobody else
            job.session.lost[utterance.channel] = min(
                utterance.index, job.session.lost.get(utterance.channel, utterance.index)
            )
            self._counts.lost.labels("failed").inc()
            ours = None if isinstance(error, UpstreamError) else error
            _log.warning("the shadow failed on %s: %s", job.event.event_id, error, exc_info=ours)
            return
        complete = utterance.index < job.session.lost.get(utterance.channel, utterance.index + 1)
        compared = Compared(job.event, self._engine.bundle_id, posteriors, complete)
        self._counts.scored.inc()
        self._counts.distance.observe(compared.distance)
        if not compared.agree:
            self._counts.disagreed.inc()
        fields: Any = shadow_fields(compared, time.time_ns() // 1_000_000)
        try:
            await self._client.xadd(SHADOW_KEY, fields, maxlen=self._maxlen, approximate=True)
        except (RedisError, OSError) as error:
            self._counts.lost.labels("unpublished").inc()
            _log.debug("Redis took no comparison: %s", error)

    async def _score(self, job: _Job) -> Posteriors:
        event, histories = job.event, job.session.histories
        utterance = event.utterance
        history = histories.get(utterance.channel, NO_HISTORY)
        if job.heard is None:
            scores = await self._engine.score(event.info, utterance, history)
            histories[utterance.channel] = scores.history
            return scores.posteriors
        bucket = bucket_length(max(len(utterance.audio), MIN_UTTERANCE))
        item = EmotionItem(utterance.audio, job.heard, history)
        scored = await self._engine.emotion.submit(item, bucket, final=True)
        histories[utterance.channel] = scored.value.history
        return scored.value.posteriors


def same_ears(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles make the same frames and words of an utterance: the same Whisper, to the bit."""
    first, second = one.spec.whisper, other.spec.whisper
    if first is None or second is None or replace(first, name="", stack=1) != replace(second, name="", stack=1):
        return False
    graphs = [bundle.manifest.files.get(graph_file(spec)) for bundle, spec in ((one, first), (other, second))]
    return graphs[0] == graphs[1]


@asynccontextmanager
async def running_shadow(shadow: Shadow, url: str, retain_s: int | None) -> AsyncIterator[Shadow]:
    """A shadow that compares until the block ends; its entries get no older than `retain_s`."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(shadow.close)
        if retain_s is not None:
            await stack.enter_async_context(beside(keep_trimmed(url, {SHADOW_KEY: retain_s}), "shadow retention"))
        await stack.enter_async_context(beside(shadow.run(), "shadow"))
        yield shadow
