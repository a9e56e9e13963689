"""How the process itself is: memory, descriptors, tasks, and how late its event loop comes to what is due.

A loop that is late is late for every stream: something computes on it that belongs into a thread.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import Histogram, ProcessCollector

from daemon import memory
from daemon.metrics import Metrics
from daemon.stream import cancelled

_EVERY_S: Final = 0.25
_TIDY_S: Final = 60.0
_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


@asynccontextmanager
async def vitals(metrics: Metrics) -> AsyncIterator[None]:
    """Tells `metrics` how the process is, and keeps its memory tidy, until the block ends; what is loaded by now stays."""
    ProcessCollector(registry=metrics.registry)
    metrics.watch("medusa_tasks", "Tasks of the event loop", lambda: len(asyncio.all_tasks()))
    metrics.watch("medusa_python_blocks", "Blocks of memory that Python's small objects hold", sys.getallocatedblocks)
    if memory.allocated() is not None:
        metrics.watch(
            "medusa_allocated_bytes",
            "Memory that malloc has given out and not got back",
            lambda: memory.allocated() or 0,
        )
    lag = Histogram(
        "medusa_event_loop_lag_seconds",
        "How late the event loop comes to what is due",
        buckets=_BUCKETS_S,
        registry=metrics.registry,
    )
    tasks = [
        asyncio.create_task(_measure(lag), name="event loop lag"),
        asyncio.create_task(_tidy(), name="tidy"),
    ]
    with memory.settled():
        try:
            yield
        finally:
            for task in tasks:
                await cancelled(task)


async def _measure(lag: Histogram) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        lag.observe(max(0.0, loop.time() - due))


async def _tidy() -> None:
    while True:
        await asyncio.sleep(_TIDY_S)
        await asyncio.to_thread(memory.tidy)
