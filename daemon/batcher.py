"""One batcher per model, shared by all streams: items wait a little for company of the same shape.

The words are Triton's: `max_batch_size`, `max_queue_delay`, `max_queue_size`. A batch holds one bucket only, and a batch
of one takes the same path, so a result never depends on who else was there. Final work goes first that is wanted first:
what is not certain yet is wanted later, so it takes only the time that certain work leaves. Interim work gives way to both: it
is refused while the model is busy for most of the time, it never takes the last free worker, and what waited too long for
its turn is refused.
"""

import asyncio
import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from daemon.errors import CapacityError, UpstreamError

Item = TypeVar("Item")
Result = TypeVar("Result")

_STALE_S: Final = 0.5
"""Interim work that waited longer shows what was said too long ago: the stream has a newer cut by then."""
_LOAD_S: Final = 5.0
"""Time over which load is judged."""
_WAIT_SHARE: Final = 0.2
"""What one batch counts in the mean of waits."""
_HEAD_START_S: Final = 0.224
"""How long before it is wanted uncertain work begins on a busy model. Sooner, more of it comes to nothing: of the pauses of
telephone calls that last 160 ms every other one ends nothing, of those that last 290 ms one of four."""
_SPARE_LOAD: Final = 0.4
"""Load above which work that may be left out is left out: beyond it queues, and with them every wait, grow fast."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When a batch runs.

    Attributes:
        max_batch_size: most items in a batch.
        max_queue_delay_s: longest an item waits for company while the model is idle.
        max_queue_size: interim items beyond this are refused; finals never are (streams are admitted earlier).
        workers: batches that run at the same time.
    """

    max_batch_size: int = 16
    max_queue_delay_s: float = 0.004
    max_queue_size: int = 64
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Timed(Generic[Result]):
    """A result, and where its time went (seconds)."""

    value: Result
    queue_s: float
    run_s: float


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    bucket: Hashable
    final: bool
    since: float
    due: float
    """When its result is wanted."""
    future: "asyncio.Future[Timed[Result]]"


@dataclass(slots=True)
class BatchCounts:
    """What a batcher did so far; metrics read it."""

    batches: int = 0
    items: int = 0
    refused: int = 0
    failures: int = 0
    largest: int = 0


@dataclass(slots=True)
class _Lanes(Generic[Item, Result]):
    """Finals in the order in which they are wanted, and interims as they came."""

    final: deque[_Waiting[Item, Result]] = field(default_factory=deque)
    interim: deque[_Waiting[Item, Result]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.final) + len(self.interim)

    def add(self, waiting: _Waiting[Item, Result]) -> None:
        insort(self.final if waiting.final else self.interim, waiting, key=lambda one: one.due)

    def forget(self, waiting: _Waiting[Item, Result]) -> None:
        """Nobody wants it any more, if it still waits."""
        lane = self.final if waiting.final else self.interim
        if waiting in lane:
            lane.remove(waiting)


class _Load:
    """The share of the last seconds in which workers ran, 0..1: an exponential mean."""

    def __init__(self, workers: int, clock: Callable[[], float]) -> None:
        self._workers = workers
        self._clock = clock
        self._share = 0.0
        self._until = clock()

    def add(self, run_s: float) -> None:
        """A worker ran for so long, until now."""
        self._share = self.share + run_s / (self._workers * _LOAD_S)

    @property
    def share(self) -> float:
        """As it is now."""
        now = self._clock()
        self._share *= math.exp((self._until - now) / _LOAD_S)
        self._until = now
        return self._share


class Batcher(Generic[Item, Result]):
    """Runs `model` on batches in `executor`.

    Args:
        name: for errors and metrics.
        model: items of one bucket to as many results, in order; called off the event loop.
        executor: threads that run it.
        settings: sizes and delays.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        name: str,
        model: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        settings: BatchSettings,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.counts = BatchCounts()
        self._model = model
        self._executor = executor
        self._settings = settings
        self._lanes: _Lanes[Item, Result] = _Lanes()
        self._running = 0
        self._begun: list[float] = []
        """When the batches that run began."""
        self._clock = clock
        self._load = _Load(settings.workers, clock)
        self._waited_s, self._waited_at = 0.0, clock()
        self._changed = asyncio.Event()
        """Something arrived, or a worker became free."""
        self._unanswered: set[asyncio.Future[Timed[Result]]] = set()
        self._stopped = False

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._lanes)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._running and not len(self._lanes)

    @property
    def load(self) -> float:
        """The share of the last seconds in which workers ran, 0..1."""
        return self._load.share

    @property
    def running_s(self) -> float:
        """How long the oldest batch that runs has been running; 0 if none does."""
        return self._clock() - min(self._begun) if self._begun else 0.0

    @property
    def wait_s(self) -> float:
        """How long finals were waited for lately: a mean over the last seconds, or how late the first in turn is by now."""
        now = self._clock()
        late_s = now - self._lanes.final[0].due if self._lanes.final else 0.0
        return max(late_s, self._waited_s * math.exp((self._waited_at - now) / _LOAD_S))

    @property
    def spare(self) -> bool:
        """Whether there is room for work that may be left out."""
        return self.load < _SPARE_LOAD

    async def submit(self, item: Item, bucket: Hashable, *, final: bool, ahead_s: float = 0.0) -> Timed[Result]:
        """Waits for the item's result.

        Args:
            item: for the model.
            bucket: whose items may share its batch.
            final: whether it must be done.
            ahead_s: how long before anybody wants it.

        Raises:
            CapacityError: if the item is interim and the queue is full, or others kept the model busy for too long.
            UpstreamError: if the model failed on this item, or was stopped before it answered.
        """
        if self._stopped:
            raise self._stop_error()
        if not final and (len(self._lanes) >= self._settings.max_queue_size or not self.spare):
            self.counts.refused += 1
            waiting_now, load = len(self._lanes), f"{self.load:.0%}"
            raise CapacityError(
                f"interim work is refused: {waiting_now} items wait for the {self.name} model, load {load}"
            )
        now, future = self._clock(), asyncio.get_running_loop().create_future()
        waiting: _Waiting[Item, Result] = _Waiting(item, bucket, final, now, now + ahead_s, future)
        self._lanes.add(waiting)
        self._changed.set()
        self._unanswered.add(waiting.future)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._lanes.forget(waiting)
            raise
        finally:
            self._unanswered.discard(waiting.future)

    def hasten(self, is_wanted: Callable[[Item], bool]) -> None:
        """Finals that wait and were to be wanted later are wanted now, where `is_wanted` says so."""
        now = self._clock()
        sooner = [waiting for waiting in self._lanes.final if waiting.due > now and is_wanted(waiting.item)]
        for waiting in sooner:
            self._lanes.forget(waiting)
            waiting.due = now
            self._lanes.add(waiting)
        if sooner:
            self._changed.set()

    async def run(self) -> None:
        """Serves for ever; cancel it to stop. Whoever still waits then gets an UpstreamError."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.workers):
                    group.create_task(self._serve(), name=f"batcher-{self.name}")
        finally:
            self._stopped = True
            for future in self._unanswered:
                if not future.done():
                    future.set_exception(self._stop_error())

    def _stop_error(self) -> UpstreamError:
        return UpstreamError(f"the {self.name} model was stopped")

    async def _serve(self) -> None:
        while True:
            while not (lane := self._next_lane()):
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._next_turn_s()):
                        await self._changed.wait()
            await self._wait_for_company(lane[0])
            batch = self._take()
            if batch:
                self._running += 1
                self._note_wait(batch[0])
                try:
                    await self._run(batch)
                finally:
                    self._running -= 1
                    self._changed.set()

    def _note_wait(self, first: _Waiting[Item, Result]) -> None:
        if first.final:
            now = self._clock()
            kept = math.exp((self._waited_at - now) / _LOAD_S) * (1 - _WAIT_SHARE)
            self._waited_s = kept * self._waited_s + _WAIT_SHARE * max(0.0, now - first.due)
            self._waited_at = now

    def _next_lane(self) -> deque[_Waiting[Item, Result]] | None:
        """What a free worker serves now: finals in time, or interims that leave another worker free for a final to come."""
        if self._lanes.final and (self._head_start_s() <= 0.0 or (not self._running and self.spare)):
            return self._lanes.final
        self._refuse_stale()
        spare = not self._running or self._running + 1 < self._settings.workers
        return self._lanes.interim if spare and self._lanes.interim else None

    def _head_start_s(self) -> float:
        """Time until the first of the finals is to be begun even by a busy model."""
        return self._lanes.final[0].due - _HEAD_START_S - self._clock()

    def _next_turn_s(self) -> float | None:
        """Time until there is a next lane, if nothing changes before."""
        return self._head_start_s() if self._lanes.final else None

    def _refuse_stale(self) -> None:
        lane, oldest = self._lanes.interim, self._clock() - _STALE_S
        while lane and lane[0].since < oldest:
            waiting = lane.popleft()
            self.counts.refused += 1
            if not waiting.future.done():
                waiting.future.set_exception(CapacityError(f"the {self.name} model has certain work to do"))

    async def _wait_for_company(self, first: _Waiting[Item, Result]) -> None:
        left = first.since + self._settings.max_queue_delay_s - self._clock()
        if left > 0 and len(self._lanes) < self._settings.max_batch_size:
            await asyncio.sleep(left)

    def _take(self) -> list[_Waiting[Item, Result]]:
        """The first item of the lane whose turn it is, and its bucket's others that have their turn."""
        lane = self._next_lane()
        if not lane:
            return []
        bucket = lane[0].bucket
        due = max(lane[0].due, self._clock() + _HEAD_START_S)
        batch: list[_Waiting[Item, Result]] = []
        rest: list[_Waiting[Item, Result]] = []
        for waiting in lane:
            fits = waiting.bucket == bucket and waiting.due <= due and len(batch) < self._settings.max_batch_size
            (batch if fits else rest).append(waiting)
        lane.clear()
        lane.extend(rest)
        return [waiting for waiting in batch if not waiting.future.cancelled()]

    async def _run(self, batch: list[_Waiting[Item, Result]]) -> None:
        begun = self._clock()
        self._begun.append(begun)
        try:
            await self._run_since(begun, batch)
        finally:
            self._begun.remove(begun)

    async def _run_since(self, begun: float, batch: list[_Waiting[Item, Result]]) -> None:
        self.counts.batches += 1
        self.counts.items += len(batch)
        self.counts.largest = max(self.counts.largest, len(batch))
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self._model, [waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise ValueError(f"it gave {len(results)} results for {len(batch)} items")
        except Exception as error:  # the boundary of one batch: a model may fail in any way
            await self._after_failure(batch, error)
            return
        run_s = self._clock() - begun
        self._load.add(run_s)
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(Timed(result, begun - waiting.since, run_s))

    async def _after_failure(self, batch: list[_Waiting[Item, Result]], error: Exception) -> None:
        """A failing item must not fail its neighbours: each that is still wanted is tried alone, once."""
        self.counts.failures += 1
        if len(batch) > 1:
            for waiting in batch:
                if not waiting.future.done():
                    await self._run([waiting])
            return
        if not batch[0].future.done():
            failure = UpstreamError(f"the {self.name} model failed: {error}")
            failure.__cause__ = error
            batch[0].future.set_exception(failure)
