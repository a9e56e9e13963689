"""One batcher per model, shared by all streams: items wait a little for company of the same shape.

The words are Triton's: `max_batch_size`, `max_queue_delay`, `max_queue_size`. A batch holds one bucket only, and a batch
of one takes the same path, so a result never depends on who else was there. Final work goes before interim work.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from daemon.errors import CapacityError, UpstreamError

Item = TypeVar("Item")
Result = TypeVar("Result")


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


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    bucket: Hashable
    since: float
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
    final: deque[_Waiting[Item, Result]] = field(default_factory=deque)
    interim: deque[_Waiting[Item, Result]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.final) + len(self.interim)


class Batcher(Generic[Item, Result]):
    """Runs `model` on batches in `executor`.

    Args:
        name: for errors and metrics.
        model: items of one bucket to as many results, in order; called off the event loop.
        executor: threads that run it.
        settings: sizes and delays.
    """

    def __init__(
        self,
        name: str,
        model: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        settings: BatchSettings,
    ) -> None:
        self.name = name
        self.counts = BatchCounts()
        self._model = model
        self._executor = executor
        self._settings = settings
        self._lanes: _Lanes[Item, Result] = _Lanes()
        self._running = 0
        self._arrived = asyncio.Event()
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

    async def submit(self, item: Item, bucket: Hashable, *, final: bool) -> Timed[Result]:
        """Waits for the item's result.

        Raises:
            CapacityError: if the item is interim and the queue is full.
            UpstreamError: if the model failed on this item, or was stopped before it answered.
        """
        if self._stopped:
            raise self._stop_error()
        if not final and len(self._lanes) >= self._settings.max_queue_size:
            self.counts.refused += 1
            raise CapacityError(f"the {self.name} queue holds {len(self._lanes)} items: interim work is refused")
        waiting: _Waiting[Item, Result] = _Waiting(
            item, bucket, time.perf_counter(), asyncio.get_running_loop().create_future()
        )
        (self._lanes.final if final else self._lanes.interim).append(waiting)
        self._arrived.set()
        self._unanswered.add(waiting.future)
        try:
            return await waiting.future
        finally:
            self._unanswered.discard(waiting.future)

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
            while not len(self._lanes):
                self._arrived.clear()
                await self._arrived.wait()
            await self._wait_for_company()
            batch = self._take()
            if batch:
                self._running += 1
                try:
                    await self._run(batch)
                finally:
                    self._running -= 1

    async def _wait_for_company(self) -> None:
        first = (self._lanes.final or self._lanes.interim)[0]
        left = first.since + self._settings.max_queue_delay_s - time.perf_counter()
        if left > 0 and len(self._lanes) < self._settings.max_batch_size:
            await asyncio.sleep(left)

    def _take(self) -> list[_Waiting[Item, Result]]:
        """The oldest item of the first lane that has one, and its bucket's others."""
        lane = self._lanes.final or self._lanes.interim
        if not lane:
            return []
        bucket = lane[0].bucket
        batch: list[_Waiting[Item, Result]] = []
        rest: list[_Waiting[Item, Result]] = []
        for waiting in lane:
            fits = waiting.bucket == bucket and len(batch) < self._settings.max_batch_size
            (batch if fits else rest).append(waiting)
        lane.clear()
        lane.extend(rest)
        return [waiting for waiting in batch if not waiting.future.cancelled()]

    async def _run(self, batch: list[_Waiting[Item, Result]]) -> None:
        begun = time.perf_counter()
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
        run_s = time.perf_counter() - begun
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(Timed(result, begun - waiting.since, run_s))

    async def _after_failure(self, batch: list[_Waiting[Item, Result]], error: Exception) -> None:
        """A failing item must not fail its neighbours: each is tried alone, once."""
        self.counts.failures += 1
        if len(batch) > 1:
            for waiting in batch:
                await self._run([waiting])
            return
        if not batch[0].future.done():
            failure = UpstreamError(f"the {self.name} model failed: {error}")
            failure.__cause__ = error
            batch[0].future.set_exception(failure)
