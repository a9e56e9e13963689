"""The dashboard forgets what Redis does not keep any more."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from daemon.calls import board as board_module
from daemon.calls.board import now_ms, running_board
from daemon.embedded import EmbeddedRedis
from daemon.sinks.redis import DEFAULT_STREAMS, StreamSettings
from tests.daemon.calls.test_board import a_call
from tests.waiting import until


async def never() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_call_that_has_expired_is_not_shown_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "_CALM_S", 0.01)
    monkeypatch.setattr(board_module, "_TICK_S", 0.05)
    async with EmbeddedRedis.start() as server, Redis.from_url(server.url, protocol=2) as redis:
        for call, age_s in (("expired", 3700), ("kept", 3500), ("lasting", 0)):
            for fields in a_call(call, over=call != "lasting"):
                aged: Any = fields | {"ts": str(int(fields["ts"]) - 1000 * age_s)}
                await redis.xadd(DEFAULT_STREAMS.events_key, aged)
        settings = StreamSettings(call_ttl_s=3600)
        async with running_board(server.url, never, lambda: None, settings) as board:
            await board.ready()
            await until(lambda: {one["call"] for one in board.rows()} == {"kept", "lasting"})
            with board.watching() as watcher:
                again: Any = a_call("expired")[0] | {"ts": str(now_ms() - 9_000_000)}
                await redis.xadd(DEFAULT_STREAMS.events_key, again)
                async with asyncio.timeout(10):
                    while b'"gone":["expired"]' not in await watcher.outbox.get():
                        pass
