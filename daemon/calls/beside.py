"""Tasks that serve the daemon and must never take it down."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

_log = logging.getLogger(__name__)

_AGAIN_S: Final = 0.1


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator["asyncio.Task[None]"]:
    """Runs `work` beside the body, and ends it with the body; if it fails before, that is logged, and the body goes on."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell)
    try:
        yield task
    finally:
        await ended(task)


async def ended(task: "asyncio.Task[None]") -> None:
    """Cancels a task until it is over: on Python 3.11, `asyncio.wait_for`, through which redis-py sends, may swallow one."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_S)


def _tell(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (problem := task.exception()) is not None:
        _log.error("%s failed and does not go on", task.get_name(), exc_info=problem)
