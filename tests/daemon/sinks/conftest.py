"""What the tests of the Redis sink share: a real Valkey server, a sink that was started, events, and what came of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from daemon.embedded import EmbeddedRedis
from daemon.interfaces import Sink
from daemon.messages import Event
from daemon.sinks.redis import DEFAULT_STREAMS, RedisSink, StreamSettings
from daemon.sinks.spool import Spool
from tests.factories import make_emotion_event, make_info

DRAIN_S = 10.0


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedRedis]:
    """A server of the test's own."""
    async with EmbeddedRedis.start() as running:
        yield running


@pytest.fixture
async def client(server: EmbeddedRedis) -> AsyncIterator["Redis"]:
    """What an operator does to `server`."""
    async with Redis.from_url(server.url, decode_responses=True, protocol=2) as connection:
        yield connection


@asynccontextmanager
async def sink_to(
    url: str, directory: Path, *, settings: StreamSettings = DEFAULT_STREAMS, memory: int = 1_000, disk: int = 1_000
) -> AsyncIterator[RedisSink]:
    """A started sink, closed at the end."""
    sink = RedisSink(url, spool=Spool(directory, memory_limit=memory, disk_limit=disk), settings=settings)
    await sink.start()
    try:
        yield sink
    finally:
        await sink.close()


async def entries(url: str, key: str = DEFAULT_STREAMS.events_key) -> list[dict[str, str]]:
    """Everything in a stream."""
    async with Redis.from_url(url, decode_responses=True, protocol=2) as connection:
        found: Any = await connection.xrange(key)
        return [fields for _, fields in found]


async def ids(url: str, key: str = DEFAULT_STREAMS.events_key) -> list[str]:
    """The event ids in a stream."""
    return [fields["event_id"] for fields in await entries(url, key)]


def some_events(count: int, *, first: int = 0) -> list[Event]:
    """Finals and interims of three calls, in turn."""
    infos = [make_info(call=f"call-{number}", session=f"session-{number}") for number in range(3)]
    return [
        make_emotion_event(index, interim=index % 2, info=infos[index % 3]) for index in range(first, first + count)
    ]


def publish(sink: Sink, events: list[Event]) -> list[str]:
    """Publishes all of them and gives their ids."""
    for event in events:
        sink.publish(event)
    return [event.event_id for event in events]
