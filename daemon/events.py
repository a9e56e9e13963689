"""Reads events back from Redis Streams: what `medusa-daemon tail` and the demo show."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import redis.exceptions as redis_errors

from daemon.errors import UpstreamError
from daemon.sinks.redis import DEFAULT_STREAMS, StreamSettings, connect

_BLOCK_S: Final = 5.0
"""How long Redis holds a request that has nothing to answer: long, because an answer comes at once anyway."""

_REPLY_S: Final = 5.0
_PAUSE_S: Final = 0.2
"""Between attempts to reach a Redis that is away: one reader, so no need to back off further."""

_AWAY: Final = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)
_PAGE: Final = 256
"""Entries per answer."""


async def read_events(
    url: str,
    *,
    key: str = DEFAULT_STREAMS.events_key,
    start: str = "$",
    on_change: Callable[[str | None], None] = lambda problem: None,
) -> AsyncGenerator[tuple[str, dict[str, str]], None]:
    """Every entry of a stream from `start` on, forever, as (entry id, fields).

    A Redis that goes away is waited for, and reading goes on behind the last entry read: none is skipped or repeated.

    Args:
        url: the Redis server.
        key: the stream; it need not exist yet.
        start: the entry id after which to begin; "0" for the oldest, "$" for what comes from now on.
        on_change: told why Redis cannot be reached when it goes away, and None when it is reached (again).

    Raises:
        ConfigError: if `url` is no Redis URL.
        UpstreamError: if Redis refuses: wrong credentials, or `key` is no stream.
    """
    client = connect(url, reply_timeout_s=_BLOCK_S + _REPLY_S)
    after = start
    problem: str | None = ""  # neither there nor away: nothing was tried yet
    try:
        while True:
            try:
                if after == "$":
                    # Redis would read "$" anew at every request and skip what came between two of them.
                    newest: Any = await client.xrevrange(key, count=1)
                    after = newest[0][0] if newest else "0-0"
                if problem is not None:
                    await client.ping()
                    problem = None
                    on_change(None)
                streams: Any = await client.xread({key: after}, count=_PAGE, block=int(_BLOCK_S * 1000))
            except (redis_errors.AuthenticationError, redis_errors.AuthorizationError) as error:
                raise UpstreamError(f"Redis refuses our credentials: {error}") from error
            except _AWAY as error:
                if not problem:
                    problem = str(error) or type(error).__name__
                    on_change(problem)
                await asyncio.sleep(_PAUSE_S)
                continue
            except redis_errors.RedisError as error:
                raise UpstreamError(f"cannot read the stream {key!r}: {error}") from error
            for _, entries in streams or ():
                for entry_id, fields in entries:
                    after = entry_id
                    yield entry_id, fields
    finally:
        await client.aclose()


async def read_call(url: str, call: str, *, settings: StreamSettings = DEFAULT_STREAMS) -> list[dict[str, str]]:
    """The fields of every entry of one call's stream, oldest first; empty if there is no such call.

    Raises:
        ConfigError: if `url` is no Redis URL.
        UpstreamError: if Redis cannot be read.
    """
    client = connect(url, reply_timeout_s=_REPLY_S)
    key = settings.call_key(call)
    try:
        entries: Any = await client.xrange(key)
        return [fields for _, fields in entries]
    except (redis_errors.RedisError, OSError) as error:
        raise UpstreamError(f"cannot read the stream {key!r}: {error}") from error
    finally:
        await client.aclose()
