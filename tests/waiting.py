"""Waiting for something that happens elsewhere: as short as it takes, and never forever."""

import asyncio
from collections.abc import Callable

_POLL_S = 0.005


async def until(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Returns once `condition` holds.

    Raises:
        TimeoutError: if it does not hold in time.
    """
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the condition is another process's, nobody sets an event
            await asyncio.sleep(_POLL_S)
