"""A worker: takes utterances from Redis as its engine has room, scores them, publishes what it finds, and lets them go.

    stream of work -> take -> decode -> score -> publish -> finish: result, history, the channel's next utterance

Whatever is stopped wherever: an utterance that is not finished is given to another worker once this one was not heard of for
the visibility timeout; scored again it gives the same scores, published again it adds nothing, finished again it changes
nothing. So it is there once, and none of its channel overtakes it.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

from redis.exceptions import ResponseError

from daemon.errors import CapacityError, UpstreamError
from daemon.fleet.publisher import Publisher
from daemon.fleet.store import AWAY, Entry, ExpiredError, Taken, WorkStore, end_if_cancelled
from daemon.fleet.wire import Failure, Result, WireError, Work, decode_history, decode_work
from daemon.interfaces import Scorer
from daemon.messages import EmotionEvent, Scores
from daemon.pipeline import now_ms

_log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.5
"""Between attempts to reach a Redis that is away."""
_SICK_AFTER: Final = 3
"""Failures in a row after which it is taken for our own fault: a broken worker must not try all the work there is."""
_LONGEST_REST_S: Final = 10.0
_DIED: Final = "every worker that took it ended before it was scored"


class Worker:
    """Takes work until it is stopped.

    Args:
        store: the work of the bundle that `scorer` has.
        publisher: where events go.
        scorer: the engine.
        name: of this worker; no other has it.
        card: what it says about its models.

    Attributes:
        scored: utterances so far, interim ones included.
        failed: attempts that failed.
        claimed: utterances taken over from workers that were not heard of any more.
        buried: utterances that were given up.
        expired: utterances that had waited for too long.
    """

    def __init__(self, store: WorkStore, publisher: Publisher, scorer: Scorer, name: str, card: bytes) -> None:
        self.scored = 0
        self.failed = 0
        self.claimed = 0
        self.buried = 0
        self.expired = 0
        self._store = store
        self._settings = store.settings
        self._publisher = publisher
        self._scorer = scorer
        self._name = name
        self._card = card
        self._held: dict[str, Entry] = {}
        self._interims = 0
        self._failures = 0
        self._scoring = 0
        self._one_alone = False
        self._begun: set[str] = set()
        """Entries of which an attempt is counted."""
        self._stuck: str | None = None
        self._problem: str | None = "not connected to Redis yet"
        self._changed = asyncio.Condition()
        self._stopping = False

    @property
    def held(self) -> int:
        """Final utterances that are being scored here."""
        return len(self._held)

    def problem(self) -> str | None:
        """None where work is taken and scored, else what is wrong."""
        if self._stopping:
            return "shutting down"
        if self._failures >= _SICK_AFTER:
            return f"the last {self._failures} utterances failed here"
        return self._problem or self._stuck

    async def run(self) -> None:
        """Works until `stop`, and then until what it holds is finished."""
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(self._repeat(step, group), name=step.__name__)
                for step in (self._beat, self._read, self._claim, self._interim)
            ]
            await self._stopped()
            for loop in loops[1:]:
                await asyncio.wait({loop})
            await self._finished()
            loops[0].cancel()  # it was heard of for as long as it held something
        try:
            await self._store.leave(self._name)
        except AWAY as error:
            _log.warning("left without a word: %s", error)

    async def stop(self, timeout_s: float) -> int:
        """Takes no more work; returns how many utterances were not finished in time. Others have them at once."""
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()
        try:
            async with asyncio.timeout(timeout_s):
                await self._finished()
        except TimeoutError:
            left = list(self._held.values())
            for entry in left:
                await self._quietly(self._store.release(entry, self._name, begun=entry.id in self._begun))
            return len(left)
        return 0

    async def _stopped(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping)

    async def _finished(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._held)

    async def _repeat(self, step: Callable[[asyncio.TaskGroup], Awaitable[None]], group: asyncio.TaskGroup) -> None:
        """A step over and over; while Redis is away, with pauses."""
        while not self._stopping or step == self._beat:
            end_if_cancelled()
            try:
                await step(group)
            except AWAY as error:
                if self._problem is None:
                    _log.warning("Redis is away: %s", error)
                self._problem = f"cannot take work from Redis: {type(error).__name__}: {error}"
                await self._nap(_PAUSE_S)
                if isinstance(error, ResponseError) and "NOGROUP" in str(error):
                    await self._quietly(self._store.prepare())  # Redis came back without its data

    async def _beat(self, group: asyncio.TaskGroup) -> None:
        if self._problem is not None:
            await self._store.prepare()
        await self._store.beat(self._name, self._card, list(self._held.values()))
        self._problem = None
        await asyncio.sleep(self._settings.visibility_s / 3)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        if room := await self._room():
            for entry in await self._store.read(self._name, room):
                await self._begin(entry, group)

    async def _claim(self, group: asyncio.TaskGroup) -> None:
        await self._nap(self._settings.visibility_s * random.uniform(0.25, 0.5))
        if room := await self._room():
            for entry in await self._store.claim(self._name, room):
                if entry.id not in self._held:  # our own, where Redis was away for longer than the timeout
                    self.claimed += 1
                    await self._begin(entry, group)

    async def _interim(self, group: asyncio.TaskGroup) -> None:
        """Interim work has what finals leave of one half of our places."""
        half = max(1, self._settings.capacity // 2)
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping or len(self._held) + self._interims < half)
        if await self._room() and (data := await self._store.next_interim()) is not None:
            self._interims += 1
            group.create_task(self._score_interim(data), name="interim")

    async def _room(self) -> int:
        """Waits for a place, and says how many there are; 0 once it stops.

        A worker that fails again and again leaves work to others, for longer and longer.
        """
        if (beyond := self._failures - _SICK_AFTER) >= 0:
            await self._nap(min(_LONGEST_REST_S, self._settings.visibility_s / 4 * 2.0 ** min(beyond, 8)))
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping or len(self._held) < self._settings.capacity)
        return 0 if self._stopping else self._settings.capacity - len(self._held)

    async def _nap(self, seconds: float) -> None:
        """Waits, but not beyond the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped()

    async def _begin(self, entry: Entry, group: asyncio.TaskGroup) -> None:
        if self._stopping:  # it was asked for before
            await self._quietly(self._store.release(entry, self._name, begun=False))
            return
        self._held[entry.id] = entry
        group.create_task(self._handle(entry), name="utterance")

    async def _handle(self, entry: Entry) -> None:
        try:
            async with self._beside_others():
                made = await self._attempt(entry, alone=False)
            if not made:
                async with self._alone():
                    await self._attempt(entry, alone=True)
        except ExpiredError as error:
            self.expired += 1
            _log.error("%s", error)
        except AWAY as error:
            _log.warning("Redis went away; the utterance is taken again once it is back: %s", error)
        except Exception as error:  # the boundary, one per utterance: it is tried again, here or elsewhere
            self._count_failure(entry, error)
            await self._quietly(self._store.release(entry, self._name, type(error).__name__))
        finally:
            async with self._changed:
                del self._held[entry.id]
                self._begun.discard(entry.id)
                self._changed.notify_all()

    async def _attempt(self, entry: Entry, *, alone: bool) -> bool:
        """Takes what it is the turn of and settles it; False where that has to be done alone."""
        taken = await self._store.take(entry, alone=alone)
        if taken == "alone":
            return False
        if taken is not None:
            self._begun.add(entry.id)
            await self._settle(entry, taken)
        return True

    @asynccontextmanager
    async def _beside_others(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._one_alone)
            self._scoring += 1
        try:
            yield
        finally:
            async with self._changed:
                self._scoring -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._one_alone)
            self._one_alone = True
            await self._changed.wait_for(lambda: self._scoring == 0)
        try:
            yield
        finally:
            async with self._changed:
                self._one_alone = False
                self._changed.notify_all()

    async def _settle(self, entry: Entry, taken: Taken) -> None:
        """Scores what was taken, and finishes it or gives it back."""
        if taken.attempt > self._settings.attempts:
            await self._bury(entry, taken, taken.reason or _DIED)
            return
        try:
            work, scores = await self._scored(taken)
        except WireError as error:
            await self._bury(entry, taken, f"it cannot be read: {error}")
        except (UpstreamError, CapacityError, TimeoutError) as error:
            self._count_failure(entry, error)
            reason = str(error) or f"it was not scored within {self._settings.score_timeout_s:g} s"
            if taken.attempt >= self._settings.attempts:
                await self._bury(entry, taken, reason)
            else:
                await self._store.release(entry, self._name, reason)
        else:
            self._failures = 0
            self.scored += 1
            await self._hand_in(entry, taken, EmotionEvent(work.info, work.utterance, scores, now_ms()))

    async def _hand_in(self, entry: Entry, taken: Taken, event: EmotionEvent) -> None:
        """Publishes, then lets go: in this order, a kill between the two repeats and loses nothing."""
        while True:
            end_if_cancelled()
            try:
                await self._publisher.publish(event)
                await self._store.finish(entry, taken.ticket, event.scores)
            except AWAY as error:
                if self._stopping:
                    raise
                if self._stuck is None:
                    _log.warning("Redis takes no results, they are handed in again: %s", error)
                self._stuck = f"Redis takes no results: {type(error).__name__}: {error}"
                await self._nap(_PAUSE_S)
            else:
                self._stuck = None
                return

    async def _scored(self, taken: Taken) -> tuple[Work, Scores]:
        work = decode_work(taken.data)
        history = decode_history(taken.history)
        async with asyncio.timeout(self._settings.score_timeout_s):
            scores = await self._scorer.score(work.info, work.utterance, history)
        latency = scores.latency
        waited = replace(latency, queue=latency.queue + taken.waited_ms, total=latency.total + taken.waited_ms)
        return work, replace(scores, latency=waited)

    async def _bury(self, entry: Entry, taken: Taken, reason: str) -> None:
        _log.error("utterance %s is given up after %d attempts: %s", taken.ticket.event_id, taken.attempt, reason)
        self.buried += 1
        await self._store.finish(entry, taken.ticket, Failure(reason))

    async def _score_interim(self, data: bytes) -> None:
        """An interim utterance is tried once; its gateway gives it up by itself."""
        try:
            work = decode_work(data)
            async with asyncio.timeout(self._settings.interim_s):
                result: Result = await self._scorer.score(work.info, work.utterance, work.history)
            self.scored += 1
            await self._store.answer(work, result)
        except (UpstreamError, CapacityError, TimeoutError, *AWAY) as error:
            _log.debug("an interim utterance is dropped: %s", error)
        finally:
            async with self._changed:
                self._interims -= 1
                self._changed.notify_all()

    def _count_failure(self, entry: Entry, error: Exception) -> None:
        self.failed += 1
        self._failures += 1
        ours = None if isinstance(error, UpstreamError | CapacityError | TimeoutError) else error
        _log.warning("an utterance of %s failed: %s", entry.channel, error, exc_info=ours)

    async def _quietly(self, step: Awaitable[None]) -> None:
        """A step that may as well fail: the timeout does the same later."""
        try:
            await step
        except AWAY as error:
            _log.debug("Redis is away: %s", error)
