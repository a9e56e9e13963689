"""The composition root: the only place that knows which engine, sink and transports a daemon is made of."""

import asyncio
import base64
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from threadpoolctl import threadpool_limits

from daemon.access.assembled import certificate_of, gate_of
from daemon.access.connections import timed
from daemon.access.gate import Gate
from daemon.access.middleware import AccessMiddleware
from daemon.access.routes import AccessRoutes
from daemon.access.tls import keep_fresh, tls_context
from daemon.access.usage import Ledger
from daemon.audit.assembled import audit_of, note_bundle, note_start, note_stream
from daemon.batcher import Batcher
from daemon.calls.alerts import AlertRules
from daemon.calls.api import CallsApi
from daemon.calls.board import running_board
from daemon.calls.leases import running_leases
from daemon.calls.tracker import CallTracker
from daemon.calls.webhook import running_webhook
from daemon.config import EMBEDDED, Config
from daemon.detection import Detection
from daemon.drift import Drift
from daemon.embedded import EmbeddedRedis
from daemon.engine import Models
from daemon.fleet.serving import Scoring, running_gateway
from daemon.headers import SecurityHeaders
from daemon.interfaces import Sink
from daemon.listening import bound
from daemon.metrics import Metrics
from daemon.pipeline import Services
from daemon.probes import Uvicorn, probes, told_to_stop
from daemon.shadow.assembled import forgetting, shadow_of
from daemon.sinks.journal import check_directory
from daemon.sinks.redis import RedisSink
from daemon.sinks.spool import Spool
from daemon.stream import Stream, cancelled
from daemon.streams import StreamRules, Streams
from daemon.swap import Bundles, reloaded_by_sighup
from daemon.swap_api import BundleApi
from daemon.tracing.assembled import tracing_of
from daemon.tracing.parent import TraceparentMiddleware
from daemon.transports.audiohook import AudioHookDialect
from daemon.transports.audiohook_signature import AudioHookKeys
from daemon.transports.deepgram import DeepgramDialect
from daemon.transports.dialect import Dialect, Handshake
from daemon.transports.hume import HumeDialect
from daemon.transports.native import NativeDialect
from daemon.transports.telnyx import TelnyxDialect
from daemon.transports.twilio import TwilioAccess, TwilioDialect
from daemon.transports.websocket import WebSocketDoor
from daemon.transports.whip.cross_origin import Origins
from daemon.transports.whip.resource import WhipDoor
from daemon.vitals import vitals
from daemon.watched import WatchedSink
from model.bundle import Bundle

_log = logging.getLogger(__name__)

_WEB = os.path.join(os.path.dirname(__file__), "web")
_CLIENT = os.path.join(_WEB, "client")
"""Pages of every site may import it: it is code, and says nothing of us."""
_DEMO_CALL = os.path.join(os.path.dirname(__file__), "demo", "call.flac")


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon.

    Attributes:
        app: the ASGI application.
        streams: its streams, through whichever door.
        sink: where events go.
        redis_url: the Redis it publishes to.
        bundle_id: that it began with.
        bundles: that it serves; None in a gateway.
    """

    app: Starlette
    streams: Streams
    sink: Sink
    redis_url: str
    bundle_id: str
    bundles: Bundles | None


@asynccontextmanager
async def running_daemon(config: Config) -> AsyncIterator[Daemon]:
    """Everything but the socket: models loaded, Redis started or reached for, batchers running.

    Raises:
        ConfigError: if something that the configuration names is not there.
    """
    gate = gate_of(config)
    bundles = await _bundles(config)
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        if bundles is not None:
            stack.push_async_callback(bundles.close)
        stack.enter_context(threadpool_limits(1))  # NumPy's own threads only get in the way of ours
        await stack.enter_async_context(vitals(metrics))
        url = await _redis_url(config, stack)
        audit = await stack.enter_async_context(audit_of(config, url, metrics))
        sink = WatchedSink(_redis_sink(config, url), metrics)
        stack.push_async_callback(sink.close)
        await sink.start()
        scoring = await _scoring(config, metrics, bundles, stack)
        drift = Drift()
        metrics.registry.register(drift)
        sink.observers.append(drift.observe)
        shadow = await stack.enter_async_context(shadow_of(config, url, metrics, bundles))
        if shadow is not None:
            sink.observers.append(shadow.observe)
        note_start(audit, config, scoring.bundle.id)
        compute = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="vad"))
        deliver = await stack.enter_async_context(running_webhook(config.alerts.webhook(), metrics.webhooked))
        calls = CallTracker(sink, _alert_rules(config, scoring.bundle), deliver)
        scorer = scoring.scorer
        tracing = await stack.enter_async_context(tracing_of())
        if tracing is not None:
            scorer = tracing.traced(scorer)
            sink.observers.append(tracing.observe)
        services = Services(scorer, calls, Detection(compute))

        def opened(stream: Stream) -> None:
            calls.listen(stream.info.session, stream.notify)
            note_stream(audit, stream, streams.rules.policy)
            if bundles is not None:
                bundles.hold(stream.info.model, stream.scoring)
            if tracing is not None:
                tracing.opened(stream.info.session)

        def changed(models: Models, before: str, who: str) -> None:
            _renew(streams, models)
            note_bundle(audit, models.bundle.id, before, who)

        leases = await stack.enter_async_context(running_leases(url, sink, metrics.lost.inc, config.stream_settings()))
        sink.observers.append(leases.observe)
        streams = Streams(_rules(config, scoring), services, metrics, scoring.wait_s, opened)
        if bundles is not None:
            bundles.changed = changed
        watched = running_board(url, streams.drained, metrics.dashboard_dropped.inc, config.stream_settings())
        board = await stack.enter_async_context(watched)

        def refused(code: str) -> None:
            metrics.peer_errors.labels(code).inc()
            audit.tally("refused", code=code)

        access = AccessRoutes(gate, config.access.token_ttl_s, config.access.session_ttl_s)
        routes = [
            *_doors(streams, config),
            *access.routes(),
            *forgetting(CallsApi(board, audit).routes(), shadow),
            *BundleApi(bundles).routes(),
        ]
        inner = [_guard(config, gate, refused), *([Middleware(TraceparentMiddleware)] if tracing is not None else [])]
        app = _app(streams, sink, scoring, metrics, routes, inner)
        yield Daemon(app, streams, sink, url, scoring.bundle.id, bundles)


async def _bundles(config: Config) -> Bundles | None:
    """Models of our own, loaded before anything else is begun; None in a gateway."""
    if config.role == "gateway":
        return None

    def check(bundle: Bundle) -> None:
        _alert_rules(config, bundle)

    bundles = Bundles(config.bundle, config.engine_settings(), check)
    await bundles.start()
    return bundles


async def _scoring(
    config: Config, metrics: Metrics, bundles: Bundles | None, stack: contextlib.AsyncExitStack
) -> Scoring:
    """Models of our own, or workers elsewhere."""
    if bundles is None:
        return await stack.enter_async_context(running_gateway(config, metrics))
    for name in ("asr", "emotion"):
        _watch(metrics, name, bundles)
    metrics.registry.register(bundles)
    models = bundles.engine.models
    return Scoring(bundles, models.bundle, models.languages, bundles.stuck, bundles.stuck, lambda: bundles.wait_s)


def _watch(metrics: Metrics, name: str, bundles: Bundles) -> None:
    """Watches a model: how busy that of the bundle is that new streams get, and what all bundles have done."""

    def batcher() -> Batcher[Any, Any]:
        return bundles.engine.asr if name == "asr" else bundles.engine.emotion

    metrics.watch(f"medusa_{name}_queue_depth", f"Items that wait for the {name} model", lambda: batcher().depth)
    metrics.watch(
        f"medusa_{name}_load", f"Share of the last seconds in which the {name} model ran", lambda: batcher().load
    )
    metrics.count(f"medusa_{name}_batches", f"Batches of the {name} model", lambda: bundles.counted(name)[0])
    metrics.count(f"medusa_{name}_items", f"Items of the {name} model", lambda: bundles.counted(name)[1])


def _renew(streams: Streams, models: Models) -> None:
    """Has new streams begin with another bundle."""
    spec = models.bundle.spec
    streams.rules = replace(
        streams.rules,
        bundle_id=models.bundle.id,
        trained_classes=spec.trained_classes,
        trained_attributes=spec.trained_attributes,
        languages=models.languages,
    )


async def _redis_url(config: Config, stack: contextlib.AsyncExitStack) -> str:
    if config.redis != EMBEDDED:
        return config.redis
    port = config.streams.embedded_port or None
    server = await stack.enter_async_context(EmbeddedRedis.start(port=port, data_dir=config.streams.embedded_dir))
    return server.url


def _redis_sink(config: Config, url: str) -> RedisSink:
    s = config.streams
    spool = Spool(s.spool_dir, memory_limit=s.spool_memory, disk_limit=s.spool_disk)
    return RedisSink(url, spool=spool, settings=config.stream_settings())


def _alert_rules(config: Config, bundle: Bundle) -> AlertRules:
    return AlertRules((rule.rule() for rule in config.alerts.rules), bundle.spec.trained_classes)


def _rules(config: Config, scoring: Scoring) -> StreamRules:
    ensemble = scoring.bundle.spec
    return StreamRules(
        bundle_id=scoring.bundle.id,
        trained_classes=ensemble.trained_classes,
        trained_attributes=ensemble.trained_attributes,
        languages=scoring.languages,
        endpointing=config.endpointing_rules(),
        interim_ms=config.interim_ms,
        ahead_silence_ms=0 if config.role == "gateway" else config.ahead_silence_ms,  # workers score what is certain
        max_streams=config.limits.max_streams,
        max_wait_s=config.limits.max_wait_ms / 1000,
        max_message_bytes=config.limits.max_message_bytes,
        idle_timeout_s=config.limits.idle_timeout_s,
        resume_window_s=config.limits.resume_window_s,
        outbox=config.limits.outbox,
        policy=config.call_policy(),
    )


def _doors(streams: Streams, config: Config) -> list[BaseRoute]:
    """A WebSocket route per protocol, and WHIP."""
    telephony = config.telephony
    twilio = TwilioAccess(_plain(telephony.twilio_auth_token), telephony.public_url)
    telnyx_token = _plain(telephony.telnyx_auth_token)
    client_secrets = {
        key: base64.b64decode(secret.get_secret_value()) for key, secret in telephony.audiohook_keys.items()
    }
    audiohook = AudioHookKeys(client_secrets, telephony.public_url, time.time)
    dialects: dict[str, Callable[[Handshake], Dialect]] = {
        "/v1/stream": NativeDialect,
        "/v1/listen": lambda handshake: DeepgramDialect(handshake, streams.rules.endpointing),
        "/v1/expression/audio/realtime": HumeDialect,
        "/audiohook": lambda handshake: AudioHookDialect(handshake, audiohook, time.monotonic),
        "/telnyx": lambda handshake: TelnyxDialect(handshake, telnyx_token),
        "/twilio": lambda handshake: TwilioDialect(handshake, twilio),
    }
    # Starlette takes a callable object for a whole ASGI app, a method for an endpoint.
    sockets = [WebSocketRoute(path, WebSocketDoor(streams, dialect).__call__) for path, dialect in dialects.items()]
    return [*sockets, *WhipDoor(streams, config.whip_rules()).routes()]


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _guard(config: Config, gate: Gate, refused: Callable[[str], None]) -> Middleware:
    """In front of every handler. Refusals are told of by code, of which there are few, whatever peers send."""
    return Middleware(
        AccessMiddleware,
        gate=gate,
        ledger=Ledger(time.time),
        denied=refused,
        whip_origins=Origins(config.whip_rules().allowed_origins),
        max_header_bytes=config.limits.max_header_bytes,
    )


def _app(
    streams: Streams, sink: Sink, scoring: Scoring, metrics: Metrics, routes: list[BaseRoute], inner: list[Middleware]
) -> Starlette:
    def problem() -> str | None:
        return "shutting down" if streams.draining else sink.healthy() or scoring.problem()

    async def demo_call(_: Request) -> Response:
        return FileResponse(_DEMO_CALL, media_type="audio/flac")

    return Starlette(
        middleware=[Middleware(SecurityHeaders), *inner],
        routes=[
            *routes,
            *probes(lambda: streams.rules.bundle_id, problem, scoring.stuck, metrics),
            Route("/demo/call.flac", demo_call),
            Mount(
                "/client", StaticFiles(directory=_CLIENT), middleware=[Middleware(CORSMiddleware, allow_origins=["*"])]
            ),
            Mount("/", StaticFiles(directory=_WEB, html=True)),
        ],
    )


async def serve(
    config: Config,
    on_ready: Callable[[Daemon, int], None] = lambda daemon, port: None,
    stop: asyncio.Event | None = None,
) -> int:
    """Serves until SIGTERM, SIGINT or `stop`, then finishes every stream; returns the exit status.

    Args:
        config: what to serve.
        on_ready: called once the socket listens, with the port.
        stop: ends the service when it is set; who gives one looks after signals too.

    Raises:
        ConfigError: if the configuration cannot work.
    """
    ours = stop is None
    stop = stop or told_to_stop()
    with bound(config) as listening:
        check_directory(config.streams.spool_dir)
        if config.insecure and not config.access.required:
            _log.warning("nobody needs a key: whoever reaches %s may stream, read and delete calls", config.host)
        return await _serve_on(listening, config, on_ready, stop, signals=ours)


async def _serve_on(
    listening: socket.socket,
    config: Config,
    on_ready: Callable[[Daemon, int], None],
    stop: asyncio.Event,
    *,
    signals: bool,
) -> int:
    certificate = certificate_of(config)
    tls = None if certificate is None else tls_context(certificate)
    async with running_daemon(config) as daemon, contextlib.AsyncExitStack() as stack:
        if certificate is not None and tls is not None:
            renewing = asyncio.create_task(keep_fresh(tls, certificate), name="certificate")
            stack.push_async_callback(cancelled, renewing)
        server = Uvicorn(_uvicorn_config(config, daemon.app, tls))
        serving = asyncio.create_task(server.serve([listening]))
        await server.begun(serving)
        if serving.done():
            await serving
            return 1
        if signals:
            stack.enter_context(reloaded_by_sighup(daemon.bundles))
        on_ready(daemon, listening.getsockname()[1])
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("stopping: finishing open streams")
        # It waits for nothing yet, but all goes to the disk now: we may be killed while we finish streams.
        await daemon.sink.drain(0)
        left = await daemon.streams.drain(config.drain_timeout_s)
        waiting = await daemon.sink.drain(config.drain_timeout_s)
        server.should_exit = True
        await serving
        stopping.cancel()
    if left:
        _log.error("%d streams did not finish in %g s", left, config.drain_timeout_s)
    if waiting:
        _log.warning("%d events are kept on disk: Redis did not take them", waiting)
    return 0 if not left else 1


def _no_denial(record: logging.LogRecord) -> bool:
    """uvicorn takes a handshake that we answered with a status for one that we forgot, and a peer could fill logs with it."""
    return "without completing handshake" not in record.getMessage()


def _uvicorn_config(config: Config, app: Starlette, tls: ssl.SSLContext | None) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").addFilter(_no_denial)
    return uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=timed(config.limits.request_timeout_s),
        h11_max_incomplete_event_size=config.limits.max_header_bytes,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        ws="websockets-sansio",
        ws_max_size=config.limits.max_message_bytes + 1,
        ws_per_message_deflate=False,
        ws_ping_timeout=None,  # a stream held back is not read, its pongs neither; dead clients fall to the idle timeout
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
    )
