"""Entries of streams that all calls share go when they are old; those of one call go with its stream, by its expiry."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from redis.exceptions import RedisError

from daemon.fleet.store import end_if_cancelled
from daemon.sinks.redis import connect

_log = logging.getLogger(__name__)

_EVERY_S: Final = 60.0
_REPLY_S: Final = 5.0


async def keep_trimmed(url: str, ages_s: Mapping[str, int], every_s: float = _EVERY_S) -> None:
    """Deletes old entries, now and every minute, until it is cancelled.

    Args:
        url: of Redis.
        ages_s: of each stream, how old its entries get, by the clock of Redis, which is that of their ids.
        every_s: between two looks.

    Raises:
        ConfigError: if `url` is no Redis URL.
    """
    client = connect(url, reply_timeout_s=_REPLY_S)
    told: str | None = None
    try:
        while True:
            end_if_cancelled()
            problem = None
            try:
                now_s, _ = await client.time()
                for key, age_s in ages_s.items():
                    # Exactly: the approximate form leaves up to a hundred entries, of any age.
                    await client.xtrim(key, minid=str((now_s - age_s) * 1000), approximate=False)
            except (RedisError, OSError) as error:
                problem = f"old entries of {', '.join(ages_s)} stay: {type(error).__name__}: {error}"
            if problem != told and problem is not None:
                _log.warning("%s", problem)
            told = problem
            end_if_cancelled()
            await asyncio.sleep(every_s)
    finally:
        await client.aclose()
