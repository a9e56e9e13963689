"""The consumers of docs/examples, each in its own language: every event handled and acknowledged, across crash and restart."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from daemon.embedded import EmbeddedRedis
from daemon.sinks.redis import DEFAULT_STREAMS
from daemon.wire import redis_fields
from tests import npm
from tests.factories import make_call_event, make_emotion_event

EXAMPLES: Final = Path(__file__).parents[1] / "docs" / "examples"
STREAM: Final = DEFAULT_STREAMS.events_key
GROUP: Final = "shop"
ME, DEAD = "me", "dead"
NODE_REDIS: Final = "redis@6.3.1"
_WITHIN_S: Final = 20.0


def python(folder: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "consumer.py")]


def node(folder: Path) -> list[str]:
    (folder / "node_modules").symlink_to(npm.installed(NODE_REDIS) / "node_modules")
    shutil.copy(EXAMPLES / "consumer.mjs", folder)
    assert npm.NODE is not None
    return [npm.NODE, str(folder / "consumer.mjs")]


def go(folder: Path) -> list[str]:
    program = shutil.which("go")
    if program is None:
        pytest.skip("needs Go")
    built = folder / "consumer"
    result = os.spawnv(os.P_WAIT, program, [program, "build", "-C", str(EXAMPLES / "go"), "-o", str(built), "."])
    assert result == 0, "go build failed"
    return [str(built)]


@asynccontextmanager
async def redis(data: Path, port: int | None = None) -> AsyncIterator[tuple[EmbeddedRedis, "Redis"]]:
    async with (
        EmbeddedRedis.start(port=port, data_dir=data) as server,
        Redis.from_url(server.url, decode_responses=True) as client,
    ):
        yield server, client


@asynccontextmanager
async def consuming(command: list[str], url: str) -> AsyncIterator[asyncio.StreamReader]:
    """What a consumer prints; it stops as on SIGTERM, and that must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, url, GROUP, ME, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield process.stdout
        assert process.returncode is None, "it stopped by itself"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def lines(output: asyncio.StreamReader, count: int) -> list[str]:
    async with asyncio.timeout(_WITHIN_S):
        return [(await output.readline()).decode().strip() for _ in range(count)]


async def add(server: "Redis", *indices: int) -> None:
    for index in indices:
        fields: Any = redis_fields(make_emotion_event(index, text=f"words {index}"))
        await server.xadd(STREAM, fields)


async def until_all_acknowledged(server: "Redis") -> None:
    async with asyncio.timeout(10):
        while True:
            (group,) = await server.xinfo_groups(STREAM)
            if group["pending"] == 0 and group["lag"] == 0:
                return
            await asyncio.sleep(0.02)


def spoken(index: int) -> str:
    return f"call-1 customer angry 0.700000 words {index}"


@pytest.mark.parametrize("command", [python, node, go])
async def test_every_event_is_handled_across_crash_restart_and_outage(
    tmp_path: Path, command: Callable[[Path], list[str]]
) -> None:
    program, data = command(tmp_path), tmp_path / "redis"
    data.mkdir()
    async with AsyncExitStack() as stack:
        async with redis(data) as (server, client):
            await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
            await add(client, 0, 1)
            # Read and not acknowledged: one by us before we crashed, one by a consumer that is gone for two minutes.
            await client.xreadgroup(GROUP, ME, {STREAM: ">"}, count=1)
            left: Any = await client.xreadgroup(GROUP, DEAD, {STREAM: ">"}, count=1)
            await client.xclaim(STREAM, GROUP, DEAD, 0, [left[0][1][0][0]], idle=120_000)
            await add(client, 2)
            started: Any = redis_fields(make_call_event())
            await client.xadd(STREAM, started)
            async with consuming(program, server.url) as output:
                assert await lines(output, 4) == [spoken(0), spoken(2), "call-1 call.started", spoken(1)]
                await until_all_acknowledged(client)
            output = await stack.enter_async_context(consuming(program, server.url))
            await add(client, 3)
            assert await lines(output, 1) == [spoken(3)], "what was acknowledged does not come again"
            await until_all_acknowledged(client)
        async with redis(data, server.port) as (_, client):
            await add(client, 4)
            assert await lines(output, 1) == [spoken(4)]
            await until_all_acknowledged(client)
            await stack.aclose()
