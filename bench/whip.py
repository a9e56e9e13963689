"""Callers over WebRTC, in a process of their own, for aiortc costs more than the daemon's share of a call.

    echo '{"port": 8765, "calls": {"a": 1, "b": 2}, "seconds": 10}' | python -m bench.whip

The process reads a job, one line of JSON, prepares its audio, writes "ready", waits for another line, then makes all calls and
writes what each one heard. Packets are encoded beforehand; what is left of aiortc is SRTP and the event loop.
"""

import asyncio
import contextlib
import fractions
import json
import random
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode, urljoin

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.codecs.opus import OpusEncoder
from aiortc.exceptions import InvalidStateError
from aiortc.mediastreams import MediaStreamError

from bench.senders import Heard
from bench.speech import speaker, utterances
from model.audio import SAMPLE_RATE_HZ, Samples

PER_PROCESS: Final = 8
"""Calls in one process."""
_RATE_HZ: Final = 48_000
_PACKET: Final = 960
_ON_THE_WAY_S: Final = 0.5
_PATIENCE_S: Final = 120.0
_LINE_LIMIT: Final = 1 << 24

AnyPacket: TypeAlias = "av.Packet[Any]"


@dataclass(frozen=True, slots=True)
class Job:
    """What one process sends.

    Attributes:
        port: of the daemon.
        calls: call id -> seed of its speaker.
        seconds: of audio.
        interim_ms: distance of interim results.
        loss: share of the packets that never arrive.
        jitter_ms: packets are late by up to so much, each by another time.
    """

    port: int
    calls: dict[str, int]
    seconds: float
    interim_ms: int = 0
    loss: float = 0.0
    jitter_ms: float = 0.0


@asynccontextmanager
async def whip_callers(jobs: Sequence[Job]) -> AsyncIterator[Callable[[], Awaitable[list[Heard]]]]:
    """Processes that are ready to make calls, at most `PER_PROCESS` each; the function makes them all, once."""
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(_process(part)) for job in jobs for part in split(job, PER_PROCESS)
        ]

        async def call() -> list[Heard]:
            found = await asyncio.gather(*(_ask(process, "go") for process in processes))
            return [_heard(one) for part in found for one in json.loads(part)]

        yield call


def _heard(one: dict[str, Any]) -> Heard:
    return Heard(**(one | {"times": [(wait, work) for wait, work in one["times"]]}))


def split(job: Job, most: int) -> list[Job]:
    """The same calls in jobs of at most `most`."""
    calls = list(job.calls.items())
    return [
        Job(job.port, dict(calls[first : first + most]), job.seconds, job.interim_ms, job.loss, job.jitter_ms)
        for first in range(0, len(calls), most)
    ]


@asynccontextmanager
async def _process(job: Job) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.whip",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    try:
        await _ask(process, json.dumps(asdict(job)))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ask(process: asyncio.subprocess.Process, line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line.encode() + b"\n")
    answer = await process.stdout.readline()
    if not answer:
        raise RuntimeError(f"a process of WebRTC callers ended with {await process.wait()} in the middle of its work")
    return answer.decode()


def opus_packets(audio: Samples) -> list[bytes]:
    """`float32 [1, T]` at 16 kHz as packets of 20 ms."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio), format="fltp", layout="mono")
    frame.sample_rate = SAMPLE_RATE_HZ
    resampler = av.AudioResampler("s16", layout="stereo", rate=_RATE_HZ, frame_size=_PACKET)
    encoder = OpusEncoder()
    found: list[bytes] = []
    for block in [part for given in (frame, None) for part in resampler.resample(given)]:
        if block.samples == _PACKET:  # the last one is a part of a packet, and silence
            block.pts, block.time_base = len(found) * _PACKET, fractions.Fraction(1, _RATE_HZ)
            found += encoder.encode(block)[0]
    return found


class _Packets(MediaStreamTrack):
    """Sends packets at the pace of speech, then ends."""

    kind = "audio"

    def __init__(self, packets: Sequence[bytes]) -> None:
        super().__init__()
        self.ended = asyncio.Event()
        self._packets = packets
        self._sent = 0
        self._begun: float | None = None

    async def recv(self) -> AnyPacket:
        """The next packet, when it is due."""
        loop = asyncio.get_running_loop()
        begun = self._begun = loop.time() if self._begun is None else self._begun
        if self._sent == len(self._packets):
            self.ended.set()
            raise MediaStreamError
        await asyncio.sleep(begun + self._sent * _PACKET / _RATE_HZ - loop.time())
        packet = av.Packet(self._packets[self._sent])
        packet.pts, packet.time_base = self._sent * _PACKET, fractions.Fraction(1, _RATE_HZ)
        self._sent += 1
        return packet


class Network:
    """Loses RTP packets and lets them be late, so that they overtake each other; RTCP passes.

    Args:
        send: what sends a packet at once.
        loss: share of the packets that are lost.
        jitter_s: the longest delay; delays are spread evenly from 0 to it.
        seed: of the chance.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], loss: float, jitter_s: float, seed: int) -> None:
        self.lost = 0
        self._send = send
        self._loss = loss
        self._jitter_s = jitter_s
        self._chance = random.Random(seed)
        self._late: set[asyncio.Task[None]] = set()

    async def carry(self, data: bytes) -> None:
        """Takes a packet."""
        if 192 <= data[1] <= 223:  # RTCP (RFC 5761, 4)
            await self._send(data)
        elif self._chance.random() < self._loss:
            self.lost += 1
        elif self._jitter_s:
            late = asyncio.create_task(self._later(data, self._chance.uniform(0, self._jitter_s)))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
        else:
            await self._send(data)

    async def _later(self, data: bytes, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with contextlib.suppress(ConnectionError):  # hung up meanwhile
            await self._send(data)


async def _call(job: Job, call: str, packets: Sequence[bytes]) -> Heard:
    heard, closed = Heard(call, ids=[]), asyncio.Event()
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    track = _Packets(packets)
    try:
        pc.addTransceiver(track, direction="sendonly")
        channel = pc.createDataChannel("results")

        @channel.on("message")
        def hear(text: str) -> None:
            message = json.loads(text)
            heard.hear(message)
            if message["type"] == "session.closed":
                closed.set()

        transport = pc.getSenders()[0].transport
        network = Network(transport._send_rtp, job.loss, job.jitter_ms / 1000, job.calls[call])
        transport._send_rtp = network.carry  # type: ignore[method-assign]  # the last place before encryption
        await pc.setLocalDescription(await pc.createOffer())
        answer = await asyncio.to_thread(_post, job, call, pc.localDescription.sdp)
        await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(job.seconds + _PATIENCE_S):
            await track.ended.wait()
            await asyncio.sleep(_ON_THE_WAY_S + job.jitter_ms / 1000)
            channel.send(json.dumps({"type": "close"}))
            await closed.wait()
    except InvalidStateError:
        heard.failed = "the data channel was closed before the call ended"
    except (OSError, TimeoutError) as error:
        heard.failed = str(error) or "no session.closed in time"
    finally:
        await pc.close()
    return heard


def _post(job: Job, call: str, offer: str) -> str:
    query = urlencode({"call_id": call, "interim_ms": job.interim_ms})
    url = urljoin(f"http://127.0.0.1:{job.port}/", f"whip?{query}")
    request = urllib.request.Request(url, offer.encode(), {"Content-Type": "application/sdp"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: str = response.read().decode()
    return answer


def _prepared(job: Job) -> Mapping[str, list[bytes]]:
    voices = utterances()
    return {call: opus_packets(speaker(voices, job.seconds, seed)) for call, seed in job.calls.items()}


async def _all(job: Job, packets: Mapping[str, list[bytes]]) -> list[dict[str, Any]]:
    found = await asyncio.gather(*(_call(job, call, packets[call]) for call in job.calls))
    return [asdict(heard) for heard in found]


def main() -> None:
    """Reads a job, says when it is ready, does it."""
    job = Job(**json.loads(sys.stdin.readline()))
    packets = _prepared(job)
    _say("ready")
    if sys.stdin.readline():
        _say(json.dumps(asyncio.run(_all(job, packets))))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
