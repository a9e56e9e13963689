"""Batchers under test: their models are threads that a test holds back, their clock is one that it moves."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from daemon.batcher import Batcher, BatchSettings, Timed

NEVER_S = 3600.0
AT_ONCE = BatchSettings(max_batch_size=4, max_queue_delay_s=0.0, max_queue_size=8)
PATIENCE_S = 10.0

Strings = Batcher[str, str]


class Model:
    """Answers an item with itself in capitals; fails on batches that hold a word of `poison`.

    Attributes:
        batches: what it was given.
        entered: set once it runs.
        gate: it answers once this is set.
    """

    def __init__(self, poison: frozenset[str] = frozenset()) -> None:
        self.batches: list[list[str]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self._poison = poison

    def __call__(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        if self._poison & set(items):
            raise RuntimeError("out of memory")
        return [item.upper() for item in items]


@asynccontextmanager
async def batcher_of(
    model: Callable[[Sequence[str]], Sequence[str]],
    rules: BatchSettings = AT_ONCE,
    clock: Callable[[], float] = time.perf_counter,
) -> AsyncIterator[Strings]:
    """A batcher with threads; the test itself lets it `serve`."""
    with ThreadPoolExecutor(rules.workers) as executor:
        yield Batcher("asr", model, executor, rules, clock)


@asynccontextmanager
async def serving(batcher: Strings) -> AsyncIterator[None]:
    running = asyncio.create_task(batcher.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def queued(
    batcher: Strings, items: Sequence[str], bucket: int = 0, *, final: bool = True, ahead_s: float = 0.0
) -> list["asyncio.Task[Timed[str]]"]:
    """Tasks that submitted their items, in order."""
    tasks = [asyncio.create_task(batcher.submit(item, bucket, final=final, ahead_s=ahead_s)) for item in items]
    await asyncio.sleep(0)  # each runs up to where it waits for its result
    return tasks


async def values(tasks: Sequence["asyncio.Task[Timed[str]]"]) -> list[str]:
    return [timed.value for timed in await asyncio.gather(*tasks)]


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
