"""A WHIP client for tests: aiortc at the other end, and plain HTTP."""

import asyncio
import fractions
import http.client
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import av
import ifaddr
import numpy as np
import numpy.typing as npt
import pytest
from aiortc import (
    AudioStreamTrack,
    MediaStreamError,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.codecs.opus import OpusDecoder, OpusEncoder
from aiortc.jitterbuffer import JitterFrame

from model.audio import SAMPLE_RATE_HZ
from model.recording import read_recording
from tests.daemon.conftest import Message

SDP: Final = "application/sdp"
FRAGMENT: Final = "application/trickle-ice-sdpfrag"
RATE_HZ: Final = 48_000
PACKET: Final = 960
_WITHIN_S: Final = 60.0

Sound = npt.NDArray[np.int16]
"""`int16 [T, 2]` at 48 kHz."""

needs_network = pytest.mark.skipif(
    not any(ip.ip != "127.0.0.1" and ip.is_IPv4 for adapter in ifaddr.get_adapters() for ip in adapter.ips),
    reason="ICE leaves loopback out, and this machine has no other network",
)


def sound_of(path: Path) -> Sound:
    """A recording at 48 kHz, one of a single channel on both sides."""
    audio = read_recording(path)
    both = audio if len(audio) == 2 else np.repeat(audio, 2, axis=0)
    resampler = av.AudioResampler("s16", layout="stereo", rate=RATE_HZ)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(both, np.float32), format="fltp", layout="stereo")
    frame.sample_rate = SAMPLE_RATE_HZ
    blocks = [out.to_ndarray().reshape(-1, 2) for out in [*resampler.resample(frame), *resampler.resample(None)]]
    return np.concatenate(blocks)


def opus_packets(sound: Sound) -> list[bytes]:
    """A sound as a peer connection sends it: packets of 20 ms, the last one filled up with silence."""
    encoder, found = OpusEncoder(), []
    for first in range(0, len(sound), PACKET):
        block = sound[first : first + PACKET]
        block = np.concatenate([block, np.zeros((PACKET - len(block), 2), np.int16)])
        frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts = RATE_HZ, first
        frame.time_base = encoder.codec.time_base
        payloads, _ = encoder.encode(frame)
        found += payloads
    return found


def through_opus(sound: Sound) -> bytes:
    """A sound as the other end of a peer connection decodes it, `linear16` at 48 kHz, both channels."""
    decoder = OpusDecoder()
    decoded = [
        frame
        for number, packet in enumerate(opus_packets(sound))
        for frame in decoder.decode(JitterFrame(packet, number * PACKET))
    ]
    return b"".join(frame.to_ndarray().tobytes() for frame in decoded)  # type: ignore[attr-defined]  # audio frames


class SoundTrack(AudioStreamTrack):
    """Sends a sound at real-time pace, or faster; then ends.

    Args:
        sound: what is sent.
        speed: of the sending; timestamps are always true.
    """

    def __init__(self, sound: Sound, speed: float = 1.0) -> None:
        super().__init__()
        self._sound = sound
        self._speed = speed
        self._sent = 0
        self._begun: float | None = None
        self.ended = asyncio.Event()

    async def recv(self) -> av.AudioFrame:
        loop = asyncio.get_running_loop()
        begun = self._begun = loop.time() if self._begun is None else self._begun
        first = self._sent * PACKET
        if first >= len(self._sound):
            self.ended.set()
            raise MediaStreamError
        await asyncio.sleep(begun + first / RATE_HZ / self._speed - loop.time())
        block = self._sound[first : first + PACKET]
        block = np.concatenate([block, np.zeros((PACKET - len(block), 2), np.int16)])
        frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, first, fractions.Fraction(1, RATE_HZ)
        self._sent += 1
        return frame


class Hop:
    """A network that loses packets of a client, from its transport on.

    Args:
        pc: of the client.
        loses: by number of the RTP packet.
        unsent: as if the sender had not sent them at all (DTX): sequence numbers have no hole, timestamps have.

    Attributes:
        lost: how many.
    """

    def __init__(self, pc: RTCPeerConnection, loses: Callable[[int], bool], *, unsent: bool = False) -> None:
        self.lost = 0
        self._count = 0
        self._loses = loses
        self._unsent = unsent
        transport = pc.getSenders()[0].transport
        self._send: Callable[[bytes], Awaitable[None]] = transport._send_rtp
        transport._send_rtp = self._pass  # type: ignore[method-assign]  # the last place before encryption

    async def _pass(self, data: bytes) -> None:
        if 192 <= data[1] <= 223:  # RTCP (RFC 5761, 4)
            await self._send(data)
            return
        self._count += 1
        if self._loses(self._count - 1):
            self.lost += 1
        elif self._unsent:
            number = (int.from_bytes(data[2:4], "big") - self.lost) % 65536
            await self._send(data[:2] + number.to_bytes(2, "big") + data[4:])
        else:
            await self._send(data)


@dataclass(frozen=True, slots=True)
class Answered:
    """What HTTP said; header names in lower case."""

    status: int
    headers: dict[str, str]
    text: str


async def http_call(port: int, method: str, path: str, body: str | bytes | None = None, **headers: str) -> Answered:
    """One request; `content_type="..."` is Content-Type."""

    def call() -> Answered:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            data = body.encode() if isinstance(body, str) else body
            connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            text = response.read().decode()
            return Answered(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
        finally:
            connection.close()

    return await asyncio.to_thread(call)


@dataclass(slots=True)
class Whip:
    """A client's end of a session.

    Attributes:
        answer: of the POST.
        told: over the data channel.
    """

    port: int
    pc: RTCPeerConnection
    answer: Answered
    channel: RTCDataChannel | None
    told: list[Message] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def location(self) -> str:
        return self.answer.headers["location"]

    async def until(self, condition: Callable[[list[Message]], object]) -> list[Message]:
        """What was told once that satisfies `condition`."""
        async with asyncio.timeout(_WITHIN_S):
            while not condition(self.told):
                self.news.clear()
                await self.news.wait()
        return self.told

    @property
    def closed(self) -> bool:
        """Whether the last message is there."""
        return bool(self.told) and self.told[-1]["type"] == "session.closed"

    def say(self, kind: str) -> None:
        """A control message over the data channel."""
        assert self.channel is not None
        self.channel.send(json.dumps({"type": kind}))

    async def close(self) -> list[Message]:
        """Everything that is said until the end, which is asked for."""
        await self.until(lambda told: told)
        self.say("close")
        return await self.until(lambda told: self.closed)

    async def delete(self) -> Answered:
        return await http_call(self.port, "DELETE", self.location)

    async def connected(self) -> None:
        async with asyncio.timeout(_WITHIN_S):
            while self.pc.connectionState != "connected":  # noqa: ASYNC110  # aiortc's event may have been before
                await asyncio.sleep(0.01)


def stereo_offer(sdp: str) -> str:
    """As a browser says that it would send two channels; aiortc's own offer says nothing about it."""
    return sdp.replace("a=rtpmap:96 opus/48000/2\r\n", "a=rtpmap:96 opus/48000/2\r\na=fmtp:96 sprop-stereo=1\r\n")


@asynccontextmanager
async def whip(
    port: int, track: AudioStreamTrack, query: str = "", *, stereo: bool = False, data_channel: bool = True
) -> AsyncIterator[Whip]:
    """A session that sends `track`."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        pc.addTransceiver(track, direction="sendonly")
        channel = pc.createDataChannel("results") if data_channel else None
        await pc.setLocalDescription(await pc.createOffer())
        offer = stereo_offer(pc.localDescription.sdp) if stereo else pc.localDescription.sdp
        answer = await http_call(port, "POST", f"/whip{query}", offer, content_type=SDP)
        session = Whip(port, pc, answer, channel)
        if channel is not None:
            channel.on("message", lambda text: _heard(session, text))
        if answer.status == 201:
            await pc.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        yield session
    finally:
        await pc.close()


def _heard(session: Whip, text: Any) -> None:
    message: Message = json.loads(text)
    session.told.append(message)
    session.news.set()


async def server_sent_events(port: int, path: str, last_event_id: str | None = None) -> list[tuple[int, Message]]:
    """All events until the stream ends, by id."""
    headers = {} if last_event_id is None else {"last_event_id": last_event_id}
    answer = await http_call(port, "GET", path, **headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            events.append((int(fields["id"]), json.loads(fields["data"])))
    return events
