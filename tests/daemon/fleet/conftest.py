"""A Redis for every file of this folder that asks for one."""

from collections.abc import AsyncIterator

import pytest_asyncio
from redis.asyncio import Redis

from daemon.embedded import EmbeddedRedis


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis.start() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def url(server: EmbeddedRedis) -> str:
    """A server without anything in it."""
    async with Redis.from_url(server.url, protocol=2) as client:
        await client.flushall()
    return server.url
