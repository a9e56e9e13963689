"""Whoever ends or stops between any two commands to Redis: every utterance is there once, in order, with its own scores.

A connection that counts says where: before the n-th command its process stops for good (killed), or for so long that it is
given up for dead and then goes on (stopped). All places are tried beside each other, each with a bundle of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import pytest
import pytest_asyncio
from redis.asyncio import Connection, Redis

from daemon.embedded import EmbeddedRedis
from daemon.fleet.card import Card, write_card
from daemon.fleet.gateway import RemoteScorer
from daemon.fleet.keys import FleetKeys
from daemon.fleet.publisher import Publisher
from daemon.fleet.store import WorkStore, connected
from daemon.fleet.wire import Failure, Work, decode_result
from daemon.fleet.worker import Worker
from daemon.messages import CallInfo
from tests.daemon.fleet.running import QUICK, offline, published, said, workers_at
from tests.fakes import ListeningScorer

pytestmark = pytest.mark.asyncio(loop_scope="module")

Value = TypeVar("Value")

UTTERANCES: Final = 2
CHANNELS: Final = 2
SETTINGS: Final = replace(QUICK, visibility_s=0.5, capacity=2, attempts=9)
AT_A_TIME: Final = 10
"""Places tried beside each other: so few that none waits for the processor beyond the visibility timeout."""


@dataclass(slots=True)
class Place:
    """Where a process stops: before its `at`-th command. Set `go_on` to have it go on."""

    at: int
    commands: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_by(self) -> None:
        self.commands += 1
        if self.commands >= self.at and not self.go_on.is_set():
            self.reached.set()
            await self.go_on.wait()


class StoppingConnection(Connection):
    """A connection that stops with its process."""

    place: Place

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if b"SETINFO" not in b"".join(command):  # what every new connection begins with
            await self.place.pass_by()
        await super().send_packed_command(command, check_health)


def stopping_client(url: str, place: Place) -> "Redis":
    kind = type("Stopping", (StoppingConnection,), {"place": place})
    client = Redis.from_url(url, protocol=2)
    client.connection_pool.connection_class = kind
    return client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    async with EmbeddedRedis.start() as running:
        yield running.url


async def beside(one: Callable[[int], Awaitable[Value]], places: range) -> list[Value]:
    async def of(at: int) -> Value:
        return await one(at)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(of(at)) for at in places]
    return [task.result() for task in tasks]


def call_of(bundle: str) -> CallInfo:
    return CallInfo(f"call-{bundle}", f"session-{bundle}", ("customer", "agent"), bundle)


def works_of(bundle: str) -> list[Work]:
    """Of both channels, in turn."""
    return [
        Work(call_of(bundle), said(index, channel), "gateway")
        for index in range(UTTERANCES)
        for channel in range(CHANNELS)
    ]


async def check_all(url: str, bundle: str, works: list[Work], in_doubt: int = 0) -> int:
    """Waits until a bundle's work is done, looks at everything that it left, and says how many utterances that were.

    The last `in_doubt` of `works` may be missing: nobody lived to hear whether Redis took them.
    """
    async with connected(url, bundle, SETTINGS) as (client, store):
        async with asyncio.timeout(30):
            while (status := await store.status()).waiting or status.held:  # noqa: ASYNC110  # Redis sets no event
                await asyncio.sleep(0.05)
        entries = await published(url, f"medusa:call:call-{bundle}")
        taken = min(len(works), max(len(works) - in_doubt, len(entries)))
        assert sorted(entry["event_id"] for entry in entries) == sorted(work.event_id for work in works[:taken]), bundle
        for channel in range(CHANNELS):
            own = [entry for entry in entries if entry["channel"] == str(channel)]
            assert [int(entry["utterance"]) for entry in own] == list(range(len(own))), bundle
            for scores, entry in zip(offline(len(own), channel), own, strict=True):
                assert entry["top"] == scores.posteriors.top
                assert float(entry["adaptation"]) == pytest.approx(scores.adaptation, abs=1e-6)
                data = await store.result(entry["event_id"])
                assert data is not None
                result = decode_result(data)
                assert not isinstance(result, Failure)
                assert result.adaptation == scores.adaptation
        assert (await store.status()).dead == 0
    return taken


@pytest.mark.parametrize("goes_on", [False, True], ids=["killed", "stopped"])
async def test_a_worker_that_ends_anywhere(url: str, goes_on: bool) -> None:
    async def one(at: int) -> bool:
        """Whether the worker came as far as to be stopped."""
        bundle = f"{'stopped' if goes_on else 'killed'}-{at}"
        works, place = works_of(bundle), Place(at)
        async with connected(url, bundle, SETTINGS) as (_, store):
            await store.prepare()
            for work in works:
                await store.accept(work, fenced=True)
        client = stopping_client(url, place)
        store = WorkStore(client, FleetKeys(bundle), SETTINGS)
        worker = Worker(store, Publisher(client), ListeningScorer(), "first", write_card(Card(("en",))))
        running = asyncio.create_task(worker.run())
        done = asyncio.create_task(done_here(worker))
        reached = asyncio.create_task(place.reached.wait())
        await asyncio.wait({done, reached}, return_when=asyncio.FIRST_COMPLETED)
        stopped = place.reached.is_set()
        if stopped and not goes_on:
            running.cancel()
        try:
            async with workers_at(url, SETTINGS, bundle) as workers:
                await workers.start("second")
                if goes_on:
                    await asyncio.sleep(2 * SETTINGS.visibility_s)
                    place.go_on.set()
                await check_all(url, bundle, works)
        finally:
            place.go_on.set()
            for task in (running, done, reached):
                task.cancel()
            await asyncio.wait({running, done, reached})
            await client.aclose()
        return stopped

    async def done_here(worker: Worker) -> None:
        while worker.scored < UTTERANCES * CHANNELS or worker.held:  # noqa: ASYNC110  # an event would change the worker
            await asyncio.sleep(0.01)

    before = len(await published(url))
    places = 0
    stopped = True
    while stopped:  # on a busy machine there are more commands: some ask again
        stopped = all(await beside(one, range(places + 1, places + 1 + AT_A_TIME)))
        places += AT_A_TIME
        assert places < 100, "else it never comes to its end"
    assert places > 2 * AT_A_TIME, "else what comes late was not reached"
    everywhere = [entry["event_id"] for entry in await published(url)][before:]
    assert len(everywhere) == len(set(everywhere)) == places * UTTERANCES * CHANNELS


async def test_a_gateway_that_ends_anywhere(url: str) -> None:
    """What Redis has taken is published, and nothing of the rest: in the order of its channel, from its beginning."""

    async def one(at: int) -> int:
        """How many utterances Redis took."""
        bundle = f"gateway-{at}"
        works, place = works_of(bundle), Place(at)
        client = stopping_client(url, place)
        gateway = RemoteScorer(WorkStore(client, FleetKeys(bundle), SETTINGS), "gateway")
        running = asyncio.create_task(gateway.run())
        for work in works:
            gateway.accept(work.info, work.utterance)
        sent = asyncio.create_task(gateway.drain(20))
        reached = asyncio.create_task(place.reached.wait())
        await asyncio.wait({sent, reached}, return_when=asyncio.FIRST_COMPLETED)
        known = len(works) - gateway.unsent
        in_doubt = min(1, gateway.unsent)  # on its way, where another connection's command was the one that stopped
        try:
            async with workers_at(url, SETTINGS, bundle) as workers:
                await workers.start("worker")
                return await check_all(url, bundle, works[: known + in_doubt], in_doubt)
        finally:
            place.go_on.set()
            for task in (running, sent, reached):
                task.cancel()
            await asyncio.wait({running, sent, reached})
            await client.aclose()

    taken = {*await beside(one, range(1, 11)), *await beside(one, range(11, 21))}
    assert {0, len(works_of(""))} < taken, "else not every command was reached"
