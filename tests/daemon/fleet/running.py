"""Gateways and workers of a test, on a Redis of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
from redis.asyncio import Redis

from daemon.fleet.card import Card, write_card
from daemon.fleet.gateway import RemoteScorer
from daemon.fleet.publisher import Publisher
from daemon.fleet.settings import FleetSettings
from daemon.fleet.store import WorkStore, connected
from daemon.fleet.worker import Worker
from daemon.interfaces import Scorer
from daemon.messages import CallInfo, Scores, Utterance
from daemon.sinks.redis import DEFAULT_STREAMS
from model.adaptation import NO_HISTORY, History
from model.audio import MIN_UTTERANCE
from tests.factories import make_info, make_utterance
from tests.fakes import ListeningScorer, heard_scores

BUNDLE: Final = make_info().model
QUICK: Final = FleetSettings(visibility_s=0.3, poll_s=0.1, interim_s=1.0)
"""So that a test does not wait for what an operator would."""
WITHIN_S: Final = 20.0

Value = TypeVar("Value")


def said(index: int, channel: int = 0, interim: int = 0) -> Utterance:
    """An utterance that no other sounds like."""
    noise = np.random.default_rng([index, channel, interim]).uniform(-0.5, 0.5, MIN_UTTERANCE)
    return replace(make_utterance(index, interim, channel), audio=noise.astype(np.float32))


def offline(count: int, channel: int = 0, *, without: frozenset[int] = frozenset()) -> list[Scores]:
    """What the first utterances of a channel give one after the other; those in `without` are never heard."""
    history, found = NO_HISTORY, []
    for index in range(count):
        scores = heard_scores(said(index, channel), history)
        if index not in without:
            history = scores.history
            found.append(scores)
    return found


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


@asynccontextmanager
async def store_at(url: str, settings: FleetSettings = QUICK, bundle: str = BUNDLE) -> AsyncIterator[WorkStore]:
    async with connected(url, bundle, settings) as (_, store):
        yield store


@asynccontextmanager
async def gateway_at(url: str, name: str = "gateway-1", settings: FleetSettings = QUICK) -> AsyncIterator[RemoteScorer]:
    """A gateway that runs; in the end it is gone as if it had been killed."""
    async with connected(url, BUNDLE, settings) as (_, store):
        gateway = RemoteScorer(store, name)
        running = asyncio.create_task(gateway.run())
        try:
            yield gateway
        finally:
            running.cancel()
            await asyncio.wait({running})


@dataclass(slots=True)
class Workers:
    """Workers on one Redis, by name."""

    url: str
    settings: FleetSettings = QUICK
    bundle: str = BUNDLE
    by_name: dict[str, Worker] = field(default_factory=dict)
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, name: str, scorer: Scorer | None = None) -> Worker:
        client, store = await self._stack.enter_async_context(connected(self.url, self.bundle, self.settings))
        worker = Worker(store, Publisher(client), scorer or ListeningScorer(), name, write_card(Card(("en",))))
        self.by_name[name] = worker
        self.tasks[name] = asyncio.create_task(worker.run(), name=name)
        return worker

    async def kill(self, name: str) -> None:
        """Ends a worker between two of its steps, without a word."""
        self.tasks[name].cancel()
        await asyncio.wait({self.tasks[name]})

    async def stop(self, name: str, timeout_s: float = WITHIN_S) -> int:
        """Ends a worker as SIGTERM does."""
        left = await self.by_name[name].stop(timeout_s)
        if left:
            self.tasks[name].cancel()
        await asyncio.wait({self.tasks[name]})
        return left

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks.values())
        for task in self.tasks.values():
            with suppress(asyncio.CancelledError):
                task.result()
        await self._stack.aclose()


@asynccontextmanager
async def workers_at(url: str, settings: FleetSettings = QUICK, bundle: str = BUNDLE) -> AsyncIterator[Workers]:
    workers = Workers(url, settings, bundle)
    try:
        yield workers
    finally:
        await workers.close()


async def scored(gateway: RemoteScorer, info: CallInfo, utterances: list[Utterance]) -> list[Scores]:
    """What a call does: all are certain, then each is asked for in its turn."""
    for utterance in utterances:
        gateway.accept(info, utterance)
    history, found = NO_HISTORY, []
    async with asyncio.timeout(WITHIN_S):
        for utterance in utterances:
            found.append(await gateway.score(info, utterance, history))
            history = found[-1].history
    return found


async def wait_for(ask: Callable[[], Awaitable[Value]], wanted: Callable[[Value], bool]) -> Value:
    """Asks until the answer is the one that is wanted."""
    async with asyncio.timeout(10):
        while not wanted(answer := await ask()):  # noqa: ASYNC110  # Redis sets no event
            await asyncio.sleep(0.01)
    return answer


async def published(url: str, key: str = DEFAULT_STREAMS.events_key) -> list[dict[str, str]]:
    async with Redis.from_url(url, decode_responses=True, protocol=2) as client:
        entries: Any = await client.xrange(key)
        return [fields for _, fields in entries]


async def left_of(url: str, what: str = "*work:*channel:*") -> dict[str, dict[str, Any]]:
    """The hashes of channels that Redis holds."""
    async with Redis.from_url(url, decode_responses=False, protocol=2) as client:
        keys = [key async for key in client.scan_iter(match=what)]
        found: dict[str, dict[str, Any]] = {}
        for key in keys:
            fields: Any = await client.hgetall(key)
            found[key.decode()] = {name.decode(): value for name, value in fields.items()}
        return found
