"""A session over packets that are given to it: what is fed, what is told, and how it ends."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from daemon.channel import Channel, Overflow
from daemon.errors import PeerError
from daemon.stream import Ending, Stream
from daemon.streams import Streams
from daemon.transports.whip.peer import Finalize, Peer
from daemon.transports.whip.reorder import Encoded
from daemon.transports.whip.results import ResultLog
from daemon.transports.whip.session import WhipSession
from model.audio import SAMPLE_RATE_HZ, Samples
from tests.daemon.transports.whip_client import PACKET, opus_packets

JUNK = b"\x03\x00"
"""Says that it holds no frame."""


class FakePeer:
    connected, failed = True, False

    def __init__(self) -> None:
        self.packets: Channel[Encoded | Finalize] = Channel(5000, Overflow.DROP_OLDEST)

    async def stop_media(self) -> None:
        await self.packets.close()

    async def goodbye(self, timeout_s: float) -> None:
        pass


class FakeStream:
    """Takes audio at once, unless it is blocked.

    Attributes:
        fed: samples so far.
        finalized: where utterances were ended.
        told: messages.
        ending: how it ended.
    """

    def __init__(self, *, blocked: bool = False, problem: PeerError | None = None) -> None:
        self.info = type("Info", (), {"roles": ("customer",)})
        self.scoring: asyncio.Task[None] = asyncio.create_task(asyncio.sleep(3600))
        self.fed, self.finalized = 0, list[int]()
        self.told = list[dict[str, Any]]()
        self.ending: Ending | None = None
        self._blocked, self._problem = blocked, problem

    async def feed(self, channels: Sequence[Samples]) -> None:
        if self._problem is not None:
            raise self._problem
        if self._blocked and len(channels[0]):
            await asyncio.Event().wait()
        self.fed += len(channels[0])

    async def finalize(self) -> None:
        self.finalized.append(self.fed)

    async def finish(self, ending: Ending) -> Ending:
        self.ending = ending
        return ending

    def notify(self, message: dict[str, Any]) -> None:
        self.told.append(message)


class FakeStreams:
    def __init__(self, idle_timeout_s: float) -> None:
        self.rules = type("Rules", (), {"idle_timeout_s": idle_timeout_s})
        self.metrics = type("Metrics", (), {"peer_errors": self})

    def labels(self, code: str) -> "FakeStreams":
        return self

    def inc(self) -> None:
        pass

    async def drained(self) -> None:
        await asyncio.Event().wait()


def session(peer: FakePeer, stream: FakeStream, idle_timeout_s: float = 60.0) -> WhipSession:
    streams = cast(Streams, FakeStreams(idle_timeout_s))
    return WhipSession(cast(Peer, peer), ResultLog(16), cast(Stream, stream), streams, contextlib.AsyncExitStack())


@pytest.fixture(scope="module")
def packet() -> bytes:
    return opus_packets(np.zeros((PACKET, 2), np.int16))[0]


def queue(peer: FakePeer, data: bytes, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        peer.packets.offer(Encoded(data, number * PACKET, 0))


async def test_all_that_came_is_fed_before_a_client_that_closes_is_done(packet: bytes) -> None:
    peer, stream = FakePeer(), FakeStream()
    queue(peer, packet, 101)
    running = session(peer, stream)
    running.end()
    async with asyncio.timeout(20):
        await running.run()
    assert stream.fed == 101 * PACKET // 3
    assert stream.ending == Ending("client_closed")
    assert stream.told == []


async def test_what_nobody_has_time_for_is_told(packet: bytes) -> None:
    """Scoring is given up while the models are behind: the rest is a gap, and not silence."""
    peer, stream = FakePeer(), FakeStream(blocked=True)
    queue(peer, packet, 500)
    running = asyncio.create_task(session(peer, stream).run())
    await asyncio.sleep(0.1)
    stream.scoring.cancel()
    async with asyncio.timeout(20):
        await running
    (gap,) = stream.told
    assert (gap["type"], gap["reason"]) == ("gap", "dropped")
    assert gap["duration_ms"] == pytest.approx(10_000, abs=60), "but for what the stream had been given"


async def test_packets_that_hold_no_audio_keep_no_session_alive(packet: bytes) -> None:
    peer, stream = FakePeer(), FakeStream()
    running = asyncio.create_task(session(peer, stream, idle_timeout_s=3.0).run())
    queue(peer, packet, 4)
    number = 4
    async with asyncio.timeout(20):
        while not running.done():
            queue(peer, JUNK, 1, number)
            number += 1
            await asyncio.sleep(0.02)
    assert stream.ending is not None
    assert stream.ending.reason == "idle"
    assert stream.fed > 0.5 * SAMPLE_RATE_HZ, "silence takes the place of what does not come"


async def test_utterances_end_where_the_client_said_it(packet: bytes) -> None:
    peer, stream = FakePeer(), FakeStream()
    queue(peer, packet, 50)
    running = session(peer, stream)
    peer.heard('{"type": "finalize"}')  # type: ignore[attr-defined]  # set by the session
    queue(peer, packet, 50, 50)
    running.end()
    async with asyncio.timeout(20):
        await running.run()
    (where,) = stream.finalized
    assert where == pytest.approx(50 * PACKET // 3, abs=64), "the resampler holds the last few samples back"
    assert stream.fed == 100 * PACKET // 3


async def test_a_stream_that_may_have_no_more_ends_with_that_reason(packet: bytes) -> None:
    peer, stream = FakePeer(), FakeStream(problem=PeerError("quota", "an hour a day, and it is over"))
    queue(peer, packet, 4)
    async with asyncio.timeout(20):
        await session(peer, stream).run()
    assert stream.ending is not None
    assert (stream.ending.reason, stream.ending.error is None) == ("quota", False)
