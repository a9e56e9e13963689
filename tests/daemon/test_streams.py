"""Admission of streams: by their number, by how long those wait that are here, and never while we shut down."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from daemon.errors import CapacityError
from daemon.metrics import Metrics
from daemon.pipeline import Services
from daemon.request import StreamRequest
from daemon.sinks.memory import MemorySink
from daemon.streams import GOING_AWAY, Stream, StreamRules, Streams
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
        streams = Streams(RULES, Services(ScriptedScorer(), MemorySink(), compute), metrics, wait)
        with streams.admitted():
            wait.seconds = 1.6
            with pytest.raises(CapacityError, match=r"results wait 1\.6 s for the engine, more than 1\.5 s: come back"):
                with streams.admitted():
                    pass
            wait.seconds = 1.4
            with streams.admitted(), pytest.raises(CapacityError, match="2 streams are open, the limit"):
                with streams.admitted():
                    pass
        assert await streams.drain(1.0) == 0
        with pytest.raises(CapacityError, match="the server is shutting down"):
            with streams.admitted():
                pass
    assert "medusa_streams_refused_total 3.0" in metrics.page().decode()


async def test_every_stream_that_begins_is_told_of() -> None:
    begun: list[Stream] = []
    with ThreadPoolExecutor(1) as compute:
        services = Services(ScriptedScorer(), MemorySink(), compute)
        streams = Streams(RULES, services, Metrics(), opened=begun.append)
        stream = streams.open(StreamRequest(), lambda message: None)
        assert begun == [stream]
        await stream.finish(GOING_AWAY)


@pytest.mark.parametrize(("window_s", "asked", "given"), [(0.0, True, False), (5.0, False, False), (5.0, True, True)])
async def test_a_token_needs_a_window_and_a_wish(window_s: float, asked: bool, given: bool) -> None:
    told: list[dict[str, object]] = []
    with ThreadPoolExecutor(1) as compute:
        rules = dataclasses.replace(RULES, resume_window_s=window_s)
        streams = Streams(rules, Services(ScriptedScorer(), MemorySink(), compute), Metrics())
        stream = streams.open(StreamRequest(resume=asked), told.append)
        assert (told[0]["resume"] is not None) is given
        assert told[0]["resume_window_ms"] == (5000 if given else 0)
        await stream.finish(GOING_AWAY)
