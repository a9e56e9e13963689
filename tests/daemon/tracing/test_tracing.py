"""Spans of utterances: what they hold, where they lie, under which trace; and what the environment may ask for."""

import asyncio
import gzip
import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import connect

from daemon.errors import ConfigError, UpstreamError
from daemon.messages import CallEvent, EmotionEvent, Totals
from daemon.pipeline import now_ms
from daemon.tracing.assembled import tracing_of
from daemon.tracing.parent import TraceparentMiddleware, carrier
from daemon.tracing.spans import Tracing
from daemon.tracing.wanted import traces_wanted
from tests.daemon.conftest import ASSETS, finals, linear16_of, pieces, serving
from tests.factories import make_info, make_utterance
from tests.fakes import ScriptedScorer

INFO: Final = make_info()
STAGES: Final = ["endpoint", "queue", "asr", "encoders", "fusion", "publish"]
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT: Final = "b7ad6b7169203331"
HEADERS: Final = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
_MS: Final = 1_000_000


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def written() -> Iterator[tuple[Tracing, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider), exporter
    provider.shutdown()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert len(found) == len(exporter.get_finished_spans())
    return found


def at(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


async def under(headers: dict[str, str], tracing: Tracing, kind: str = "websocket") -> None:
    """A stream that a request opens."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tracing.opened(INFO.session)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await TraceparentMiddleware(app)({"type": kind, "headers": raw}, receive, send)


async def score(tracing: Tracing, index: int = 0, *, ahead_s: float = 0.0, pause_s: float = 0.0) -> None:
    """Scores and publishes an utterance."""
    utterance = make_utterance(index)
    scores = await tracing.traced(ScriptedScorer()).score(INFO, utterance, ahead_s=ahead_s)
    await asyncio.sleep(pause_s)
    if ahead_s:
        scores = replace(scores, latency=replace(scores.latency, total=0.0))
    tracing.observe(EmotionEvent(INFO, utterance, scores, now_ms()))


@pytest.mark.parametrize("kind", ["websocket", "http"])
async def test_an_utterance_is_a_span_of_its_stages_under_the_trace_of_the_client(kind: str) -> None:
    with written() as (tracing, exporter):
        await asyncio.create_task(under(HEADERS, tracing, kind))
        assert carrier() == {}, "it is the request's alone"
        await score(tracing)
        spans = by_name(exporter)
        assert sorted(spans) == sorted([*STAGES, "utterance"])
        root = spans.pop("utterance")
        assert root.context.trace_id == int(TRACE, 16)
        assert root.parent is not None
        assert root.parent.span_id == int(PARENT, 16)
        assert dict(root.attributes or {}) == {
            "medusa.session": INFO.session,
            "medusa.channel": 0,
            "medusa.utterance": 0,
            "medusa.model": INFO.model,
            "medusa.speech_ms": pytest.approx(len(make_utterance().audio) / 16),
        }
        for span in spans.values():
            assert span.parent is not None
            assert span.parent.span_id == root.context.span_id
            assert span.context.trace_id == root.context.trace_id
        # of tests.factories.make_scores; published at once
        lasted = {"endpoint": 500.0, "queue": 1.5, "asr": 40.0, "encoders": 20.0, "fusion": 3.0}
        for name, ms in lasted.items():
            begin, end = at(spans[name])
            assert end - begin == ms * _MS, name
        order = [at(spans[name]) for name in ("endpoint", "queue", "asr", "encoders", "fusion", "publish")]
        assert at(root)[0] == order[0][0]
        assert at(root)[1] == order[-1][1]
        for (_, before), (begin, _) in zip(order[1:-1], order[2:-1], strict=False):
            assert begin == before
        assert all(at(root)[0] <= begin <= end <= at(root)[1] for begin, end in order)


async def test_what_was_scored_ahead_lies_where_it_was_done() -> None:
    with written() as (tracing, exporter):
        tracing.opened(INFO.session)
        await score(tracing, ahead_s=0.2, pause_s=0.2)
        spans = by_name(exporter)
        assert at(spans["fusion"])[1] <= at(spans["endpoint"])[1] - 100 * _MS
        assert spans["utterance"].parent is None, "no trace came with the request: it begins here"


async def test_what_failed_says_so() -> None:
    with written() as (tracing, exporter):
        await under(HEADERS, tracing)
        failing = tracing.traced(ScriptedScorer(failing=frozenset({0})))
        for ahead_s in (0.3, 0.0):
            with pytest.raises(UpstreamError):
                await failing.score(INFO, make_utterance(), ahead_s=ahead_s)
        (span,) = exporter.get_finished_spans()
        assert (span.name, span.status.status_code) == ("utterance", StatusCode.ERROR)
        assert span.context.trace_id == int(TRACE, 16)


async def test_a_stream_that_ended_leaves_nothing_behind() -> None:
    with written() as (tracing, exporter):
        await under(HEADERS, tracing)
        await tracing.traced(ScriptedScorer()).score(INFO, make_utterance(0), ahead_s=0.3)
        tracing.observe(CallEvent("call.ended", INFO, Totals(), "client_closed", now_ms()))
        assert (tracing._parents, tracing._scored) == ({}, {})
        await under({"traceparent": "00-nonsense"}, tracing)
        await score(tracing)
        assert by_name(exporter)["utterance"].parent is None


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_SERVICE_NAME": "calls"}, False),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            True,
        ),
    ],
)
def test_when_traces_are_wanted(environ: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(environ) is wanted


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
    ],
)
def test_what_cannot_be_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"is '{list(environ.values())[-1]}'"):
        traces_wanted(environ)


async def test_without_the_extra_traces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tracing_of() as tracing:
        assert tracing is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"pip install 'medusa-rt\[otel\]'"):
        async with tracing_of():
            pass


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP collector over HTTP, and what it was sent."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


async def test_a_daemon_sends_the_spans_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        async with serving(tmp_path / "spool") as served:
            begun = time.time_ns()
            audio = pieces(linear16_of(ASSETS / "two_sentences.flac"))
            async with connect(f"{served.url}?interim_ms=0", additional_headers=HEADERS) as connection:
                for chunk in audio:
                    await connection.send(chunk)
                await connection.send('{"type": "close"}')
                messages = [json.loads(text) async for text in connection]
            ended = time.time_ns()
    (resource,) = {each.resource.SerializeToString(): each.resource for r in got for each in r.resource_spans}.values()
    named = {each.key: each.value.string_value for each in resource.attributes}
    assert named["service.name"] == "medusa-daemon"
    spans = [s for request in got for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
    roots = [span for span in spans if span.name == "utterance"]
    assert len(roots) == len(finals(messages)) == 2
    assert {span.name for span in spans} == {"utterance", *STAGES}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.parent_span_id.hex() for span in roots} == {PARENT}
    for span in spans:
        if span.name != "endpoint":
            assert begun - 10**9 < span.start_time_unix_nano <= span.end_time_unix_nano <= ended
        assert not {"angry", "sad", "happy", "neutral", "fear", "disgust"} & {str(a.value) for a in span.attributes}
