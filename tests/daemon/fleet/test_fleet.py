"""Gateways and workers on a real Valkey server: every utterance once, in order, whoever ends when."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from daemon.embedded import EmbeddedRedis
from daemon.errors import CapacityError, UpstreamError
from daemon.fleet.gateway import RemoteScorer
from daemon.fleet.store import Entry, Status, Taken, Ticket, connected
from daemon.fleet.wire import Work, decode_history
from daemon.interfaces import Scorer
from daemon.messages import CallInfo, Scores, Utterance
from model.adaptation import NO_HISTORY, History
from tests.daemon.fleet.running import (
    BUNDLE,
    QUICK,
    WITHIN_S,
    free_port,
    gateway_at,
    left_of,
    offline,
    published,
    said,
    scored,
    store_at,
    workers_at,
)
from tests.factories import make_info
from tests.fakes import ListeningScorer, heard_scores
from tests.waiting import until

Value = TypeVar("Value")


class Slow(ListeningScorer):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        self.seen.append(f"{info.session}:{utterance.channel}:{utterance.index}")
        await asyncio.sleep(self._seconds)
        return heard_scores(utterance, history)


class Deadly(Slow):
    """Ends with channel 0, as a process does that is killed: nothing that it was about to do is done."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.died = asyncio.Event()

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        if utterance.channel == 0:
            self.died.set()
            await asyncio.Event().wait()
        return await super().score(info, utterance, history, ahead_s=ahead_s)


async def wait_for(ask: Callable[[], Awaitable[Value]], wanted: Callable[[Value], bool]) -> Value:
    """Asks until the answer is the one that is wanted."""
    async with asyncio.timeout(10):
        while not wanted(answer := await ask()):  # noqa: ASYNC110  # Redis sets no event
            await asyncio.sleep(0.01)
    return answer


def gateway_status(gateway: RemoteScorer) -> Callable[[], Awaitable[Status | None]]:
    async def ask() -> Status | None:
        return gateway.status

    return ask


pytestmark = pytest.mark.asyncio(loop_scope="module")


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


async def test_a_dead_workers_utterances_are_taken_over_in_order(url: str) -> None:
    info = make_info()
    stuck = asyncio.Event()

    def hang(utterance: object) -> None:
        stuck.set()
        raise asyncio.CancelledError  # as if the process had ended here

    async with gateway_at(url) as gateway, workers_at(url) as workers:
        await workers.start("dies", ListeningScorer(dying=hang))
        scoring = asyncio.create_task(scored(gateway, info, [said(index) for index in range(3)]))
        await asyncio.wait_for(stuck.wait(), 5)
        await workers.kill("dies")
        heir = await workers.start("heir")
        found = await scoring
        assert heir.claimed == 1
    assert [each.adaptation for each in found] == [each.adaptation for each in offline(3)]


async def test_a_slow_worker_keeps_what_it_holds(url: str) -> None:
    """Its heartbeat renews it for longer than the visibility timeout; nobody else takes it."""
    slow = Slow(5 * QUICK.visibility_s)
    async with gateway_at(url) as gateway, workers_at(url) as workers:
        await workers.start("slow", slow)
        scoring = asyncio.create_task(scored(gateway, make_info(), [said(0)]))
        await until(lambda: bool(slow.seen))
        idle = await workers.start("idle")
        await scoring
        assert (idle.claimed, idle.scored) == (0, 0)
    assert slow.seen == ["session-1:0:0"]


async def test_one_that_came_back_from_a_long_stop_changes_nothing(url: str) -> None:
    """It was given up for dead, another has finished its utterance, and its own result comes late."""
    settings = replace(QUICK, visibility_s=0.15)
    async with connected(url, BUNDLE, settings) as (_, store), workers_at(url, settings) as workers:
        await store.prepare()
        for index in range(2):
            await store.accept(Work(make_info(), said(index), "g"), fenced=True)
        (entry,) = await store.read("stopped", 1)
        taken = await store.take(entry, alone=False)
        assert isinstance(taken, Taken)
        await asyncio.sleep(0.2)
        heir = await workers.start("heir")
        await until(lambda: heir.scored == 2)
        assert await store.finish(entry, taken.ticket, offline(1)[0]) is False
        assert await store.take(entry, alone=False) is None
        await store.release(entry, "stopped")
        await wait_for(store.status, lambda status: status.waiting + status.held == 0)
        await asyncio.sleep(0.3)
        assert heir.scored == 2
    (channel,) = (await left_of(url)).values()
    assert decode_history(channel["history"]).weight == 2.0


async def test_a_poisoned_utterance_is_given_up_and_its_channel_goes_on(url: str) -> None:
    """Without it: the history is that of the utterances that could be scored."""
    info = make_info()
    async with gateway_at(url) as gateway, workers_at(url) as workers, store_at(url) as store:
        for name in ("a", "b"):
            await workers.start(name, ListeningScorer(failing=frozenset({1})))
        for index in range(3):
            gateway.accept(info, said(index))
        first = await gateway.score(info, said(0))
        with pytest.raises(UpstreamError, match="asr model failed: out of memory"):
            await gateway.score(info, said(1), first.history)
        last = await gateway.score(info, said(2), first.history)
        tries = sum(worker.failed for worker in workers.by_name.values())
        assert tries == QUICK.attempts
        assert (await store.status()).dead == 1
    assert last.adaptation == offline(3, without=frozenset({1}))[-1].adaptation
    assert [event["utterance"] for event in await published(url)] == ["0", "2"]
    (letter,) = await published(url, store.keys.dead)
    assert (letter["event_id"], letter["bundle"]) == ("session-1:0:1:final", BUNDLE)
    assert letter["reason"] == "the asr model failed: out of memory"
    assert set(letter) == {*Ticket.__slots__, "reason", "ts"}


async def test_what_ends_its_workers_takes_no_other_utterance_along(url: str) -> None:
    """The last attempt is made alone: of ten that were there whenever a worker died, one is given up."""
    infos = [make_info(f"call-{number}", f"session-{number}") for number in range(10)]
    async with gateway_at(url) as gateway, workers_at(url) as workers, store_at(url) as store:
        for number, info in enumerate(infos):
            gateway.accept(info, said(0, channel=0 if number == 5 else 1))
        await gateway.drain(5)
        for attempt in range(QUICK.attempts):
            scorer = Deadly()
            await workers.start(f"worker-{attempt}", scorer)
            await asyncio.wait_for(scorer.died.wait(), WITHIN_S)
            await workers.kill(f"worker-{attempt}")
        await workers.start("last")
        await wait_for(store.status, lambda status: status.waiting + status.held == 0)
        assert workers.by_name["last"].buried == 1
    assert len(await published(url)) == 9
    (letter,) = await published(url, store.keys.dead)
    assert letter["session"] == "session-5"
    assert "ended before it was scored" in letter["reason"]


async def test_a_reason_is_that_of_the_attempt_before(url: str) -> None:
    """The first failed and said why, the worker of the second died: the third is made alone, and knows no reason."""
    settings = replace(QUICK, visibility_s=0.1)
    async with connected(url, BUNDLE, settings) as (_, store):
        await store.prepare()
        await store.accept(Work(make_info(), said(0), "g"), fenced=True)
        (entry,) = await store.read("a", 1)
        first = await store.take(entry, alone=False)
        assert isinstance(first, Taken)
        await store.release(entry, "a", "it was too slow")
        second = await store.take(entry, alone=False)
        assert isinstance(second, Taken)
        assert (second.attempt, second.reason) == (2, "it was too slow")
        assert await store.take(entry, alone=False) == "alone"
        third = await store.take(entry, alone=True)
        assert isinstance(third, Taken)
        assert (third.attempt, third.reason) == (3, "")


async def test_a_worker_that_fails_all_the_time_leaves_work_to_others(url: str) -> None:
    class Broken(ListeningScorer):
        async def score(self, *args: Any, **kwargs: Any) -> Scores:
            raise UpstreamError("the GPU fell off the bus")

    infos = [make_info(f"call-{number}", f"session-{number}") for number in range(30)]
    async with gateway_at(url) as gateway, workers_at(url, replace(QUICK, capacity=1)) as workers:
        broken = await workers.start("broken", Broken())
        await workers.start("good")
        async with asyncio.TaskGroup() as group:
            for info in infos:
                group.create_task(scored(gateway, info, [said(0)]))
        await until(lambda: broken.failed >= 1)
        assert broken.failed < 10
    assert len(await published(url)) == 30


async def test_a_worker_that_stops_finishes_what_it_holds_and_is_forgotten(url: str) -> None:
    slow = Slow(0.3)
    async with gateway_at(url) as gateway, workers_at(url) as workers, store_at(url) as store:
        await workers.start("a", slow)
        scoring = asyncio.create_task(scored(gateway, make_info(), [said(0)]))
        await until(lambda: bool(slow.seen))
        assert await workers.stop("a") == 0
        assert workers.by_name["a"].scored == 1
        await scoring
        assert (await store.status()).workers == 0
        gateway.accept(make_info(session="later"), said(0))
        await asyncio.sleep(0.1)
        assert slow.seen == ["session-1:0:0"]


async def test_what_comes_to_a_worker_that_stops_another_has_at_once(url: str) -> None:
    """Its last request for work is still under way, and is answered."""
    settings = replace(QUICK, visibility_s=20.0)
    async with gateway_at(url) as gateway, workers_at(url, settings) as workers:
        stops = await workers.start("stops")
        await until(lambda: stops.problem() is None)
        await asyncio.sleep(0.1)
        assert await stops.stop(0) == 0
        scoring = asyncio.create_task(scored(gateway, make_info(), [said(0)]))
        await asyncio.sleep(0.3)
        assert not scoring.done()
        await workers.start("heir")
        assert (await asyncio.wait_for(scoring, 5))[0].adaptation == offline(1)[0].adaptation
        assert stops.scored == 0


async def test_what_a_worker_cannot_finish_in_time_another_has_at_once(url: str) -> None:
    """Without waiting for the visibility timeout, and the attempt does not count."""
    settings = replace(QUICK, visibility_s=2.0, attempts=1)
    slow = Slow(60)
    async with gateway_at(url) as gateway, workers_at(url, settings) as workers:
        await workers.start("slow", slow)
        scoring = asyncio.create_task(scored(gateway, make_info(), [said(0)]))
        await until(lambda: bool(slow.seen))
        assert await workers.stop("slow", timeout_s=0.05) == 1
        begun = asyncio.get_running_loop().time()
        await workers.start("heir")
        assert (await scoring)[0].adaptation == offline(1)[0].adaptation
        assert asyncio.get_running_loop().time() - begun < settings.visibility_s


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
