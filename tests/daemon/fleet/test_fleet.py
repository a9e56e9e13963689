"""Gateways and workers on a real Valkey server: every utterance once, in order, by whoever has time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from daemon.errors import CapacityError
from daemon.fleet.gateway import RemoteScorer
from daemon.fleet.store import Status, Taken, connected
from daemon.fleet.wire import Work
from daemon.interfaces import Scorer
from tests.daemon.fleet.running import (
    BUNDLE,
    QUICK,
    Slow,
    gateway_at,
    left_of,
    offline,
    published,
    said,
    scored,
    store_at,
    wait_for,
    workers_at,
)
from tests.factories import make_info
from tests.fakes import ListeningScorer, heard_scores
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def gateway_status(gateway: RemoteScorer) -> Callable[[], Awaitable[Status | None]]:
    async def ask() -> Status | None:
        return gateway.status

    return ask


async def test_a_call_gets_what_it_would_get_here(url: str) -> None:
    info = make_info()
    async with gateway_at(url) as gateway, workers_at(url) as workers:
        scorer: Scorer = gateway
        assert scorer is gateway
        await workers.start("a")
        found = await scored(gateway, info, [said(index) for index in range(8)])
        assert gateway.accepted == 8
    for got, wanted in zip(found, offline(8), strict=True):
        assert got.posteriors == wanted.posteriors
        assert got.adaptation == wanted.adaptation
        assert got.history.weight == wanted.history.weight
    assert [event["event_id"] for event in await published(url)] == [f"session-1:0:{i}:final" for i in range(8)]
    assert [event["event_id"] for event in await published(url, "medusa:call:call-1")] == [
        f"session-1:0:{i}:final" for i in range(8)
    ]
    (channel,) = (await left_of(url)).values()
    assert set(channel) == {"last", "tail", "head", "history"}, "no audio stays"


async def test_channels_of_many_calls_go_beside_each_other_and_each_in_order(url: str) -> None:
    """Over two gateways and three workers, each channel with the history that is its own."""
    infos = [make_info(f"call-{number}", f"session-{number}") for number in range(6)]
    patient = replace(QUICK, visibility_s=10.0)
    async with gateway_at(url, "one") as one, gateway_at(url, "two") as two, workers_at(url, patient) as workers:
        scorers = [ListeningScorer() for _ in range(3)]
        for number, scorer in enumerate(scorers):
            await workers.start(f"worker-{number}", scorer)
        async with asyncio.TaskGroup() as group:
            calls = {
                (number, channel): group.create_task(
                    scored((one, two)[number % 2], infos[number], [said(index, channel=channel) for index in range(5)])
                )
                for number in range(6)
                for channel in range(2)
            }
    for (_, channel), task in calls.items():
        for got, wanted in zip(task.result(), offline(5, channel), strict=True):
            assert (got.posteriors, got.adaptation) == (wanted.posteriors, wanted.adaptation)
    ids = [event["event_id"] for event in await published(url)]
    assert len(ids) == len(set(ids)) == 60
    for number, channel in calls:
        own = [event_id for event_id in ids if event_id.startswith(f"session-{number}:{channel}:")]
        assert own == [f"session-{number}:{channel}:{index}:final" for index in range(5)]
    assert sum(len(scorer.seen) for scorer in scorers) == 60, "nothing was scored twice"


async def test_what_a_gateway_handed_in_is_published_without_it(url: str) -> None:
    """It is killed before any worker is there."""
    async with gateway_at(url) as gateway:
        for index in range(4):
            gateway.accept(make_info(), said(index))
        await gateway.drain(5.0)
        assert gateway.accepted == 4
    async with workers_at(url) as workers, store_at(url) as store:
        await workers.start("a")
        await wait_for(lambda: store.status(), lambda status: status.waiting + status.held == 0)
    assert [event["event_id"] for event in await published(url)] == [f"session-1:0:{i}:final" for i in range(4)]


async def test_interims_are_scored_and_refused_where_nobody_has_time(url: str) -> None:
    """They go the same way as nothing else: no event, no trace, and none of the channel's order."""
    info = make_info()
    async with gateway_at(url) as gateway, workers_at(url) as workers:
        with pytest.raises(CapacityError, match="enough to do"):
            await gateway.score(info, said(0, interim=1))
        await workers.start("a")
        await wait_for(gateway_status(gateway), lambda status: status is not None and status.workers == 1)
        before = offline(1)[0].history
        got = await gateway.score(info, said(1, interim=1), before)
        assert got.adaptation == heard_scores(said(1, interim=1), before).adaptation
        with pytest.raises(CapacityError, match="nothing is scored ahead"):
            await gateway.score(info, said(1), before, ahead_s=0.3)
    assert await published(url) == []
    assert await left_of(url, "*interim:*") == {}


async def test_interims_wait_for_finals(url: str) -> None:
    """A worker that is full of finals takes none; they expire, and their audio with them."""
    settings = replace(QUICK, capacity=2, interim_s=0.3)
    slow = Slow(1.5)
    async with gateway_at(url, settings=settings) as gateway, workers_at(url, settings) as workers:
        await workers.start("a", slow)
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(scored(gateway, make_info(session=f"session-{number}"), [said(0)]))
            await until(lambda: len(slow.seen) == 2)
            interims = [gateway.score(make_info(session=f"other-{n}"), said(0, interim=1)) for n in range(3)]
            refused = await asyncio.gather(*interims, return_exceptions=True)
            assert all(isinstance(error, CapacityError) for error in refused)
        assert len(slow.seen) <= 3, "one that was waited for when the finals came may go with them"
    async with store_at(url) as store:
        assert (await store.status()).interims == 0


async def test_another_bundles_work_is_not_taken(url: str) -> None:
    async with gateway_at(url) as gateway, workers_at(url, bundle="other") as others, workers_at(url) as workers:
        other = await others.start("other")
        scoring = asyncio.create_task(scored(gateway, make_info(), [said(0)]))
        await asyncio.sleep(0.5)
        assert not scoring.done()
        assert "no worker with the bundle bundle-1" in (gateway.problem() or "")
        await workers.start("ours")
        await scoring
        assert other.scored == 0
        await wait_for(gateway_status(gateway), lambda status: status is not None and status.workers == 1)
        assert gateway.problem() is None


async def test_the_lag_is_what_waits_at_every_moment(url: str) -> None:
    """Also where later entries are finished before earlier ones: workers are scaled by it."""
    async with connected(url, BUNDLE, QUICK) as (client, store):
        await store.prepare()
        assert (await store.status()).oldest_ms == 0
        for number in range(9):
            await store.accept(Work(make_info(session=f"session-{number}"), said(0), "g"), fenced=True)
        entries = await store.read("a", 6)
        await asyncio.sleep(0.05)
        status = await store.status()
        assert (status.waiting, status.held) == (3, 6)
        assert status.oldest_ms >= status.waiting_ms >= 40
        for left, at in enumerate([5, 2, 0, 4, 1, 3]):
            taken = await store.take(entries[at], alone=False)
            assert isinstance(taken, Taken)
            assert await store.finish(entries[at], taken.ticket, offline(1)[0])
            status = await store.status()
            assert (status.waiting, status.held) == (3, 5 - left)
            (group,) = await client.xinfo_groups(store.keys.work)
            assert group["lag"] == 3
            assert status.waiting_ms >= 40
        for entry in await store.read("a", 9):
            taken = await store.take(entry, alone=False)
            assert isinstance(taken, Taken)
            assert await store.finish(entry, taken.ticket, offline(1)[0])
        assert (await store.status()).waiting_ms == 0
        assert await client.xlen(store.keys.work) == 1, "what is done is trimmed but for the last"


async def test_audio_is_gone_once_it_is_scored_and_everything_expires(url: str) -> None:
    async with connected(url, BUNDLE, QUICK) as (client, store), workers_at(url) as workers:
        await store.accept(Work(make_info(), said(0), "g"), fenced=True)
        used: Any = await client.memory_usage(store.keys.channel("session-1:0"))
        assert used > 6400
        assert 3590 < await client.ttl(store.keys.channel("session-1:0")) <= 3600
        worker = await workers.start("a")
        await until(lambda: worker.scored == 1)
        await wait_for(store.status, lambda status: status.held == 0)
        for key in [key async for key in client.scan_iter(match="*work*")]:
            used = await client.memory_usage(key)
            assert used < 6400, key
            if any(name in key for name in (b":channel:", b":result:", b":notices:")):
                assert 0 < await client.ttl(key) <= 3600
