"""Tasks beside the daemon end with it, whatever they are in the middle of."""

import asyncio
from contextlib import suppress

from daemon.calls.beside import beside


async def test_a_task_that_swallows_a_cancellation_ends_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            swallowed += 1
        await asyncio.sleep(60)

    async with asyncio.timeout(10):
        async with beside(stubborn(), "stubborn") as task:
            await asyncio.sleep(0)
        assert task.cancelled()
    assert swallowed == 2


async def test_a_task_that_fails_leaves_the_body_alone() -> None:
    async def failing() -> None:
        raise ValueError("it fails")

    async with beside(failing(), "failing") as task:
        await asyncio.sleep(0.01)
        assert task.done()
