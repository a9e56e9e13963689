"""Admission of streams: by their number, by how long those wait that are here, and never while we shut down."""

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from daemon.access.principal import Limits
from daemon.access.usage import UNLIMITED, Account, QuotaError
from daemon.detection import Detection
from daemon.errors import CapacityError
from daemon.messages import CallEvent
from daemon.metrics import Metrics
from daemon.pipeline import Services
from daemon.request import StreamRequest
from daemon.sinks.memory import MemorySink
from daemon.stream import GOING_AWAY, Stream, cancelled
from daemon.streams import StreamRules, Streams
from model.audio import SAMPLE_RATE_HZ
from model.segmenter import Endpointing
from tests.fakes import ScriptedScorer

RULES = StreamRules(
    bundle_id="bundle-1",
    trained_classes=("angry", "neutral"),
    trained_attributes=(),
    languages=("en",),
    endpointing=Endpointing(),
    interim_ms=0,
    ahead_silence_ms=0,
    max_streams=2,
    max_wait_s=1.5,
    max_message_bytes=1 << 20,
    idle_timeout_s=60.0,
    resume_window_s=0.0,
    outbox=16,
)


class Wait:
    """How long finals wait, as a test says."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_stream_more_is_refused_while_results_wait() -> None:
    wait, metrics = Wait(), Metrics()
    with ThreadPoolExecutor(1) as compute:
        streams = Streams(RULES, Services(ScriptedScorer(), MemorySink(), Detection(compute)), metrics, wait)
        with streams.place(UNLIMITED):
            wait.seconds = 1.6
            with pytest.raises(CapacityError, match=r"results wait 1\.6 s for the engine, more than 1\.5 s: come back"):
                with streams.place(UNLIMITED):
                    pass
            wait.seconds = 1.4
            with (
                streams.place(UNLIMITED),
                pytest.raises(CapacityError, match="2 streams are open, the limit: come back"),
            ):
                with streams.place(UNLIMITED):
                    pass
            assert "\nmedusa_streams 1.0" in metrics.page().decode()
        assert await streams.drain(1.0) == 0
        for refused in (streams.admitted(), streams.place(UNLIMITED)):
            with pytest.raises(CapacityError, match="the server is shutting down"), refused:
                pass
    assert "medusa_streams_refused_total 4.0" in metrics.page().decode()


async def test_connections_are_let_in_although_no_stream_may_begin() -> None:
    """They may come for a stream that is here. Twice as many as streams: one that hangs, and one that comes in its place."""
    wait, metrics = Wait(), Metrics()
    wait.seconds = 2.0
    with ThreadPoolExecutor(1) as compute:
        streams = Streams(RULES, Services(ScriptedScorer(), MemorySink(), Detection(compute)), metrics, wait)
        with streams.admitted(), streams.admitted(), streams.admitted():
            with streams.admitted(), pytest.raises(CapacityError, match="4 connections are open, the limit: come back"):
                with streams.admitted():
                    pass
            assert streams.connections == 3
        assert streams.connections == 0
    assert "medusa_streams_refused_total 1.0" in metrics.page().decode()
    assert "\nmedusa_streams 0.0" in metrics.page().decode()


async def test_a_stream_that_is_refused_is_not_counted_as_begun() -> None:
    """A client that tries again and again while we are full has its starts left for when we are not."""
    account = Account("edge", Limits(starts_per_minute=1), lambda: 0.0)
    with ThreadPoolExecutor(1) as compute:
        streams = Streams(RULES, Services(ScriptedScorer(), MemorySink(), Detection(compute)), Metrics())
        with streams.place(UNLIMITED), streams.place(UNLIMITED), pytest.raises(CapacityError, match="2 streams"):
            with streams.place(account):
                pass
        with streams.place(account):
            pass
        with pytest.raises(QuotaError, match="within a minute"), streams.place(account):
            pass


async def test_audio_that_no_stream_took_is_not_counted() -> None:
    """A stream waits before it takes more: who goes away in that time has had what was taken, and no more."""
    account, sink = Account("edge", Limits(day_s=4), lambda: 86_400.0), MemorySink()
    second, go_on = np.zeros(SAMPLE_RATE_HZ, np.float32), threading.Event()
    with ThreadPoolExecutor(1) as compute:
        streams = Streams(RULES, Services(ScriptedScorer(), sink, Detection(compute)), Metrics())
        stream = streams.open(StreamRequest(), lambda message: None, account=account)
        with pytest.raises(ValueError, match="this session has 1 channels, got 2"):
            await stream.feed([second, second])
        compute.submit(go_on.wait)
        try:
            taken = asyncio.create_task(stream.feed([second]))
            await asyncio.sleep(0)  # it has taken its audio, and waits for a thread
            await cancelled(taken)
            waiting = asyncio.create_task(stream.feed([second]))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await cancelled(waiting)
        finally:
            go_on.set()
        await stream.feed([second])
        await stream.finish(GOING_AWAY)
    ended = sink.events[-1]
    assert isinstance(ended, CallEvent)
    assert ended.totals.received_samples == 2 * SAMPLE_RATE_HZ
    meter = account.meter()
    assert meter.problem(2 * SAMPLE_RATE_HZ) is None, "4 s a day, of which 2 s were taken"
    assert meter.problem(1) is not None


async def test_every_stream_that_begins_is_told_of() -> None:
    begun: list[Stream] = []
    with ThreadPoolExecutor(1) as compute:
        services = Services(ScriptedScorer(), MemorySink(), Detection(compute))
        streams = Streams(RULES, services, Metrics(), opened=begun.append)
        stream = streams.open(StreamRequest(), lambda message: None)
        assert begun == [stream]
        await stream.finish(GOING_AWAY)


@pytest.mark.parametrize(("window_s", "asked", "given"), [(0.0, True, False), (5.0, False, False), (5.0, True, True)])
async def test_a_token_needs_a_window_and_a_wish(window_s: float, asked: bool, given: bool) -> None:
    told: list[dict[str, object]] = []
    with ThreadPoolExecutor(1) as compute:
        rules = dataclasses.replace(RULES, resume_window_s=window_s)
        streams = Streams(rules, Services(ScriptedScorer(), MemorySink(), Detection(compute)), Metrics())
        stream = streams.open(StreamRequest(resume=asked), told.append)
        assert (told[0]["resume"] is not None) is given
        assert told[0]["resume_window_ms"] == (5000 if given else 0)
        await stream.finish(GOING_AWAY)
