"""A Redis that is away or full, or from which something is gone: calls get what they would have got, or are told."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.embedded import EmbeddedRedis
from daemon.errors import UpstreamError
from daemon.fleet.store import Entry, Taken, connected
from daemon.fleet.wire import Work
from tests.daemon.fleet.running import (
    BUNDLE,
    QUICK,
    gateway_at,
    offline,
    published,
    said,
    scored,
    workers_at,
)
from tests.factories import make_info
from tests.ports import free_port
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_lost_notice_does_not_hang_a_call(url: str) -> None:
    """Nobody tells the gateway, it looks by itself."""
    async with connected(url, BUNDLE, QUICK) as (client, store), gateway_at(url) as gateway:
        await store.prepare()
        scoring = asyncio.create_task(scored(gateway, make_info(), [said(0)]))
        entries: list[Entry] = []
        while not entries:
            entries = await store.read("by hand", 1)
        taken = await store.take(entries[0], alone=False)
        assert isinstance(taken, Taken)
        async with client.pipeline(transaction=True) as both:
            await both.watch(store.keys.work)
            await store.finish(entries[0], replace(taken.ticket, gateway="nobody"), offline(1)[0])
        assert (await scoring)[0].adaptation == offline(1)[0].adaptation


async def test_a_redis_that_lost_everything_gets_the_utterances_again(url: str) -> None:
    """With the history of their channel, so that they get the same scores."""
    info = make_info()
    async with gateway_at(url) as gateway, workers_at(url) as workers, connected(url, BUNDLE, QUICK) as (client, _):
        await workers.start("a")
        done = await scored(gateway, info, [said(index) for index in range(2)])
        await workers.stop("a")
        gateway.accept(info, said(2))
        await gateway.drain(5)
        await client.flushall()
        gateway.accept(info, said(3))
        await gateway.drain(5)
        await workers.start("b")
        third = await gateway.score(info, said(2), done[-1].history)
        fourth = await gateway.score(info, said(3), third.history)
        assert gateway.repeated == 2
    wanted = offline(4)
    assert [third.adaptation, fourth.adaptation] == [each.adaptation for each in wanted[2:]]
    assert [event["utterance"] for event in await published(url)] == ["2", "3"]


async def test_a_redis_that_is_away_for_a_while(tmp_path: Path) -> None:
    """Its data outlive it; what was accepted meanwhile waits at the gateway."""
    port = free_port()
    address = f"redis://127.0.0.1:{port}/0"
    async with AsyncExitStack() as stack:
        async with EmbeddedRedis.start(port=port, data_dir=tmp_path):
            gateway = await stack.enter_async_context(gateway_at(address))
            workers = await stack.enter_async_context(workers_at(address))
            worker = await workers.start("a")
            first = (await scored(gateway, make_info(), [said(0)]))[0]
        await until(lambda: worker.problem() is not None and gateway.problem() is not None)
        for index in (1, 2):
            gateway.accept(make_info(), said(index))
        rest = asyncio.create_task(gateway.score(make_info(), said(1), first.history))
        await asyncio.sleep(0.3)
        assert gateway.unsent == 2
        async with EmbeddedRedis.start(port=port, data_dir=tmp_path):
            second = await asyncio.wait_for(rest, 10)
            third = await asyncio.wait_for(gateway.score(make_info(), said(2), second.history), 10)
            await until(lambda: worker.problem() is None and gateway.problem() is None)
            assert [event["utterance"] for event in await published(address)] == ["0", "1", "2"]
            await workers.stop("a")
    assert [each.adaptation for each in (first, second, third)] == [each.adaptation for each in offline(3)]


async def test_what_waited_too_long_is_counted_and_the_rest_goes_on(url: str) -> None:
    async with connected(url, BUNDLE, QUICK) as (client, store), workers_at(url) as workers:
        for session in ("lost", "kept"):
            await store.accept(Work(make_info(session=session), said(0), "g"), fenced=True)
        await client.delete(store.keys.channel("lost:0"))  # as its expiry does
        worker = await workers.start("a")
        await until(lambda: worker.scored == 1 and worker.held == 0)
        assert worker.expired == 1
        assert worker.problem() is None


async def test_what_cannot_be_read_is_given_up_at_once(url: str) -> None:
    """Its gateway is told; its channel goes on."""
    async with connected(url, BUNDLE, QUICK) as (client, store), gateway_at(url) as gateway, workers_at(url) as workers:
        for index in range(2):
            gateway.accept(make_info(), said(index))
        await gateway.drain(5)
        await client.hset(store.keys.channel("session-1:0"), "u:1", b"not an utterance")
        worker = await workers.start("a")
        with pytest.raises(UpstreamError, match="it cannot be read"):
            await gateway.score(make_info(), said(0))
        assert (await gateway.score(make_info(), said(1))).adaptation == offline(2, without=frozenset({0}))[
            0
        ].adaptation
        assert (worker.buried, worker.failed) == (1, 0)


async def test_a_full_redis_takes_no_work_but_lets_it_end(url: str) -> None:
    """Out of memory: what is scored frees some, once events are taken again."""
    async with connected(url, BUNDLE, QUICK) as (client, store), gateway_at(url) as gateway, workers_at(url) as workers:
        worker = await workers.start("a")
        await scored(gateway, make_info(), [said(0)])
        await client.config_set("maxmemory", "1")
        try:
            gateway.accept(make_info(), said(1))
            await until(lambda: "takes no utterances" in (gateway.problem() or ""))
            assert gateway.unsent == 1
        finally:
            await client.config_set("maxmemory", "0")
        assert (await gateway.score(make_info(), said(1))).adaptation == offline(2)[1].adaptation
        await until(lambda: worker.problem() is None)


async def test_finishing_needs_no_memory(url: str) -> None:
    async with connected(url, BUNDLE, QUICK) as (client, store):
        await store.prepare()
        await store.accept(Work(make_info(), said(0), "g"), fenced=True)
        (entry,) = await store.read("a", 1)
        taken = await store.take(entry, alone=False)
        assert isinstance(taken, Taken)
        await client.config_set("maxmemory", "1")
        try:
            assert await store.finish(entry, taken.ticket, offline(1)[0])
        finally:
            await client.config_set("maxmemory", "0")
