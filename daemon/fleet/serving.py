"""The parts of a daemon that are a gateway's, and the whole of a worker: what `serve --role` runs.

A gateway is the daemon of one machine with a `RemoteScorer` in the engine's place. A worker has no streams: its port answers
`/health`, `/ready` and `/metrics` alone.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from threadpoolctl import threadpool_limits

from daemon.batcher import Batcher
from daemon.config import Config
from daemon.engine import Engine, load_models, running_engine
from daemon.errors import ConfigError, UpstreamError
from daemon.fleet.card import Card, write_card
from daemon.fleet.gateway import RemoteScorer
from daemon.fleet.publisher import Publisher
from daemon.fleet.store import AWAY, Status, WorkStore, connected, end_if_cancelled
from daemon.fleet.worker import Worker
from daemon.interfaces import Scorer
from daemon.listening import bound
from daemon.metrics import Metrics
from daemon.probes import Problem, Uvicorn, probes, told_to_stop
from daemon.sinks.redis import without_password
from daemon.vitals import vitals
from model.bundle import Bundle, BundleError, read_bundle
from model.signature import KeyFormatError, require_signature

_log = logging.getLogger(__name__)

_CARD_WAIT_S: Final = 60.0
_CARD_PAUSE_S: Final = 0.2
_LEAVE_S: Final = 3.0
"""How long the last words of a worker that holds nothing may take."""
_NOTHING: Final = Status(0, 0, 0.0, 0.0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What scores utterances, and what clients are told of it.

    Attributes:
        scorer: here or elsewhere.
        bundle: whose models they are.
        languages: ISO 639-1 codes that a stream may ask for.
        problem: what is wrong with it, else None.
        stuck: what is wrong with it for good, else None.
        wait_s: how long finals waited lately before they were scored.
    """

    scorer: Scorer
    bundle: Bundle
    languages: tuple[str, ...]
    problem: Problem
    stuck: Problem
    wait_s: Callable[[], float]


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A running worker.

    Attributes:
        app: the ASGI application of its probes.
        worker: takes the work.
        running: ends early only where the worker has failed.
        redis_url: the Redis that it takes it from.
        bundle_id: of its models.
    """

    app: Starlette
    worker: Worker
    running: "asyncio.Task[None]"
    redis_url: str
    bundle_id: str


@asynccontextmanager
async def running_gateway(config: Config, metrics: Metrics) -> AsyncIterator[Scoring]:
    """Workers elsewhere, as a gateway sees them; what it still has to hand in at the end it hands in.

    Raises:
        ConfigError: if the bundle is damaged or not signed by who is trusted, or no worker ever had it.
    """
    bundle = await asyncio.to_thread(_bundle, config)
    async with connected(config.redis, config.work_of(bundle.id), config.fleet_settings()) as (_, store):
        card = await _first_card(store, config)
        gateway = RemoteScorer(store, _name("gateway"))
        _watch_work(metrics, lambda: gateway.status)
        metrics.count("medusa_gateway_accepted", "Final utterances that Redis has taken", lambda: gateway.accepted)
        metrics.count("medusa_gateway_repeated", "Utterances that Redis had lost", lambda: gateway.repeated)
        metrics.watch("medusa_gateway_unsent", "Final utterances that wait for Redis", lambda: gateway.unsent)

        def waiting_s() -> float:
            return (gateway.status or _NOTHING).waiting_ms / 1000

        running = asyncio.create_task(gateway.run(), name="gateway")
        try:
            yield Scoring(
                gateway,
                bundle,
                card.languages,
                lambda: _ended(running) or gateway.problem(),
                lambda: _ended(running),
                waiting_s,
            )
            if left := await gateway.drain(config.drain_timeout_s):
                _log.error("%d utterances are lost: Redis did not take them", left)
        finally:
            running.cancel()
            await asyncio.wait({running})


@asynccontextmanager
async def running_worker(config: Config) -> AsyncIterator[WorkerProcess]:
    """A worker that takes work until it is stopped, or the block ends: what it holds then, others have at once.

    Raises:
        ConfigError: if something that the configuration names is not there.
    """
    settings = config.engine_settings()
    models = await asyncio.to_thread(load_models, config.bundle, settings)
    metrics = Metrics()
    with threadpool_limits(1):  # NumPy's own threads only get in the way of ours
        async with (
            vitals(metrics),
            running_engine(models, settings) as engine,
            connected(config.redis, config.work_of(engine.bundle_id), config.fleet_settings()) as (client, store),
        ):
            card = write_card(Card(models.languages))
            worker = Worker(store, Publisher(client, config.stream_settings()), engine, _name("worker"), card)
            board = _StatusBoard(store, config.fleet_settings().poll_s)
            _watch_work(metrics, lambda: board.status)
            _watch_worker(metrics, worker, engine)
            running = asyncio.create_task(worker.run(), name="worker")
            watching = asyncio.create_task(board.run(), name="board")
            try:
                app = Starlette(routes=probes(lambda: engine.bundle_id, worker.problem, engine.stuck, metrics))
                yield WorkerProcess(app, worker, running, config.redis, engine.bundle_id)
                await worker.stop(0)
                await asyncio.wait({running}, timeout=_LEAVE_S)
            finally:
                for task in (running, watching):
                    task.cancel()
                await asyncio.wait({running, watching})


async def serve_worker(
    config: Config,
    on_ready: Callable[[WorkerProcess, int], None] = lambda process, port: None,
    stop: asyncio.Event | None = None,
) -> int:
    """Works until SIGTERM, SIGINT or `stop`, then finishes what it holds; returns the exit status.

    Args:
        config: what to run.
        on_ready: called once the probes listen, with the port.
        stop: ends the worker when it is set; who gives one looks after signals too.

    Raises:
        ConfigError: if the configuration cannot work.
    """
    stop = stop or told_to_stop()
    with bound(config) as listening:
        async with running_worker(config) as process, _listening(listening, process.app) as serving:
            on_ready(process, listening.getsockname()[1])
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({serving, stopping, process.running}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if process.running.done():
                process.running.result()  # it has failed, and says why
            _log.info("stopping: finishing %d utterances", process.worker.held)
            if left := await process.worker.stop(config.drain_timeout_s):  # while the probes still answer
                _log.warning("%d utterances are left to other workers", left)
    return 0


@asynccontextmanager
async def _listening(listening: socket.socket, app: Starlette) -> AsyncIterator["asyncio.Task[None]"]:
    server = Uvicorn(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))
    serving = asyncio.create_task(server.serve([listening]), name="probes")
    await server.begun(serving)
    try:
        yield serving
    finally:
        server.should_exit = True
        await serving


class _StatusBoard:
    """How much there is to do, asked for now and then."""

    def __init__(self, store: WorkStore, every_s: float) -> None:
        self.status: Status | None = None
        self._store = store
        self._every_s = every_s

    async def run(self) -> None:
        while True:
            end_if_cancelled()
            try:
                self.status = await self._store.status()
            except AWAY:
                self.status = None
            await asyncio.sleep(self._every_s)


def _watch_work(metrics: Metrics, status: Callable[[], Status | None]) -> None:
    def now() -> Status:
        return status() or _NOTHING

    metrics.watch("medusa_work_waiting", "Channels whose next utterance no worker has taken", lambda: now().waiting)
    metrics.watch("medusa_work_held", "Channels whose next utterance is with a worker", lambda: now().held)
    metrics.watch("medusa_work_oldest_seconds", "Age of the oldest of both", lambda: now().oldest_ms / 1000)
    metrics.watch("medusa_work_interims", "Interim utterances that wait", lambda: now().interims)
    metrics.count("medusa_work_dead", "Utterances that were given up", lambda: now().dead)
    metrics.watch("medusa_work_workers", "Workers that were heard of lately", lambda: now().workers)


def _watch_worker(metrics: Metrics, worker: Worker, engine: Engine) -> None:
    metrics.watch("medusa_worker_held", "Final utterances that are being scored here", lambda: worker.held)
    metrics.count("medusa_worker_scored", "Utterances scored here", lambda: worker.scored)
    metrics.count("medusa_worker_failed", "Attempts that failed here", lambda: worker.failed)
    metrics.count("medusa_worker_claimed", "Utterances taken over from workers that were gone", lambda: worker.claimed)
    metrics.count("medusa_worker_buried", "Utterances given up here", lambda: worker.buried)
    metrics.count("medusa_worker_expired", "Utterances that waited for too long", lambda: worker.expired)
    for batcher in (engine.asr, engine.emotion):
        _watch_batcher(metrics, batcher)


def _watch_batcher(metrics: Metrics, batcher: Batcher[Any, Any]) -> None:
    name = batcher.name
    metrics.count(f"medusa_{name}_batches", f"Batches of the {name} model", lambda: batcher.counts.batches)
    metrics.count(f"medusa_{name}_items", f"Items of the {name} model", lambda: batcher.counts.items)


async def _first_card(store: WorkStore, config: Config) -> Card:
    """What workers say of the bundle: a gateway must know it before its first client asks."""
    problem = f"no worker ever had the bundle {store.keys.bundle}"
    _log.info("waiting for a worker with the bundle %s", store.keys.bundle)
    try:
        async with asyncio.timeout(_CARD_WAIT_S):
            while True:
                end_if_cancelled()
                try:
                    await store.prepare()  # what workers are scaled by is there before the first of them
                    if (card := await store.card()) is not None:
                        return card
                except UpstreamError as error:
                    problem = str(error)
                except AWAY as error:
                    problem = f"Redis cannot be used: {type(error).__name__}: {error}"
                await asyncio.sleep(_CARD_PAUSE_S)
    except TimeoutError as error:
        raise ConfigError(
            f"{problem}, on {without_password(config.redis)}, for {_CARD_WAIT_S:g} s: start one with "
            "`medusa-daemon serve --role worker` and the same bundle and Redis"
        ) from error


def _bundle(config: Config) -> Bundle:
    try:
        require_signature(config.bundle, config.models.trusted_keys)
        return read_bundle(config.bundle)
    except (BundleError, KeyFormatError) as error:
        raise ConfigError(str(error)) from error


def _ended(running: "asyncio.Task[None]") -> str | None:
    return "the gateway has failed: restart it" if running.done() else None


def _name(kind: str) -> str:
    return f"{kind}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
