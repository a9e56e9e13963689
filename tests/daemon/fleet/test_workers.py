"""Workers that die, stop, fail or are slow: what they hold is scored elsewhere, or given up where nobody can."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from daemon.errors import UpstreamError
from daemon.fleet.store import Taken, Ticket, connected
from daemon.fleet.wire import Work, decode_history
from daemon.messages import CallInfo, Scores, Utterance
from model.adaptation import NO_HISTORY, History
from tests.daemon.fleet.running import (
    BUNDLE,
    QUICK,
    WITHIN_S,
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
from tests.fakes import ListeningScorer
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
