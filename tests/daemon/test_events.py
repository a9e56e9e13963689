"""Reading events back from a real Valkey server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio import Redis

from daemon.embedded import EmbeddedRedis
from daemon.errors import ConfigError, UpstreamError
from daemon.events import read_call, read_events
from daemon.sinks.redis import DEFAULT_STREAMS
from tests.waiting import until

KEY = DEFAULT_STREAMS.events_key
Entries = AsyncIterator[tuple[str, dict[str, str]]]


async def add(url: str, *numbers: int) -> None:
    """Adds entries to the common stream."""
    async with Redis.from_url(url) as client:
        for number in numbers:
            await client.xadd(KEY, {"n": str(number)})


async def next_numbers(events: Entries, count: int) -> list[int]:
    """The next entries that a reader gives."""
    async with asyncio.timeout(10.0):
        return [int((await anext(events))[1]["n"]) for _ in range(count)]


async def until_blocked(url: str) -> None:
    """Returns once the reader waits inside Redis."""
    async with Redis.from_url(url) as client, asyncio.timeout(10.0):
        while not (await client.info("clients"))["blocked_clients"]:  # noqa: ASYNC110 - nobody sets an event for us
            await asyncio.sleep(0.005)


async def test_reads_from_the_beginning_and_then_what_comes() -> None:
    """From the oldest entry on; more than one answer's worth of them."""
    async with EmbeddedRedis.start() as server, aclosing(read_events(server.url, start="0")) as events:
        await add(server.url, *range(300))
        assert await next_numbers(events, 300) == list(range(300))
        waiting = asyncio.create_task(next_numbers(events, 1))
        await add(server.url, 300)
        assert await waiting == [300]


async def test_reads_only_what_comes_by_default() -> None:
    """What was there before is not read, also not after the stream was empty for a while."""
    async with EmbeddedRedis.start() as server, aclosing(read_events(server.url)) as events:
        await add(server.url, 1, 2)
        waiting = asyncio.create_task(next_numbers(events, 1))
        await until_blocked(server.url)
        await add(server.url, 3)
        assert await waiting == [3]


@pytest.mark.parametrize("start", ["0", "$"])
async def test_a_restart_skips_and_repeats_nothing(tmp_path: Path, start: str) -> None:
    """Entries added while the reader could not reconnect yet are read as well."""
    async with EmbeddedRedis.start(data_dir=tmp_path) as server:
        events = read_events(server.url, start=start)
        waiting = asyncio.create_task(next_numbers(events, 2))
        await until_blocked(server.url)
        await add(server.url, 1, 2)
        assert await waiting == [1, 2]
        waiting = asyncio.create_task(next_numbers(events, 2))
    async with EmbeddedRedis.start(port=server.port, data_dir=tmp_path), aclosing(events):
        await add(server.url, 3, 4)
        assert await waiting == [3, 4]


async def test_a_restart_before_the_first_entry_skips_nothing(tmp_path: Path) -> None:
    """New is what comes after the first request, not what comes after the reconnection."""
    async with EmbeddedRedis.start(data_dir=tmp_path) as server:
        events = read_events(server.url)
        waiting = asyncio.create_task(next_numbers(events, 2))
        await until_blocked(server.url)
    async with EmbeddedRedis.start(port=server.port, data_dir=tmp_path), aclosing(events):
        await add(server.url, 1, 2)
        assert await waiting == [1, 2]


async def test_waits_for_a_server_that_is_not_there_yet() -> None:
    """A reader may be started first."""
    async with EmbeddedRedis.start() as server:
        pass
    async with aclosing(read_events(server.url, start="0")) as events:
        waiting = asyncio.create_task(next_numbers(events, 1))
        async with EmbeddedRedis.start(port=server.port):
            await add(server.url, 1)
            assert await waiting == [1]


async def test_what_redis_refuses_is_not_retried() -> None:
    """Wrong credentials and a key that is no stream do not heal by waiting."""
    async with EmbeddedRedis.start() as server, Redis.from_url(server.url) as client:
        await client.set(KEY, "not a stream")
        with pytest.raises(UpstreamError, match=r"cannot read the stream 'medusa:events': .*WRONGTYPE"):
            await anext(read_events(server.url))
        with pytest.raises(UpstreamError, match="credentials"):
            await anext(read_events(server.url.replace("//", "//:wrong@")))


async def test_a_call_that_never_was_has_no_events() -> None:
    """Empty, not an error; a server that is away is one."""
    async with EmbeddedRedis.start() as server:
        assert await read_call(server.url, "nobody") == []
    with pytest.raises(UpstreamError, match="cannot read the stream 'medusa:call:nobody'"):
        await read_call(server.url, "nobody")


async def test_a_url_that_is_none_is_a_configuration_error() -> None:
    """Told at once."""
    with pytest.raises(ConfigError, match="not a Redis URL"):
        await anext(read_events("localhost:6379"))


async def test_tells_when_redis_goes_and_comes_back(tmp_path: Path) -> None:
    """Once each, with the reason."""
    told: list[str | None] = []
    async with EmbeddedRedis.start() as server:
        pass
    async with aclosing(read_events(server.url, start="0", on_change=told.append)) as events:
        waiting = asyncio.create_task(next_numbers(events, 1))
        await until(lambda: bool(told))
        async with EmbeddedRedis.start(port=server.port, data_dir=tmp_path):
            await add(server.url, 1)
            assert await waiting == [1]
            waiting = asyncio.create_task(next_numbers(events, 1))
            await until_blocked(server.url)
        await until(lambda: len(told) == 3)
        async with EmbeddedRedis.start(port=server.port, data_dir=tmp_path):
            await add(server.url, 2)
            assert await waiting == [2]
    assert [problem is None for problem in told] == [False, True, False, True]
    assert str(server.port) in str(told[0])
