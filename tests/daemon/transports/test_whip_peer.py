"""A peer connection on its own: what comes out of it is what went in, and it never keeps more than it may."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.codecs.opus import OpusDecoder

from daemon.channel import Closed
from daemon.transports.opus import packet_samples
from daemon.transports.whip.intake import Intake
from daemon.transports.whip.peer import Peer
from daemon.transports.whip.reorder import Encoded
from daemon.transports.whip.results import ResultLog
from daemon.transports.whip.sdp import parse_offer
from model.audio import SAMPLE_RATE_HZ
from tests.daemon.transports.test_whip_timeline import joined, loudest_hz, tones
from tests.daemon.transports.whip_client import PACKET, SoundTrack, needs_network, stereo_offer

pytestmark = needs_network


@asynccontextmanager
async def connected(track: SoundTrack) -> AsyncIterator[Peer]:
    """A peer that is sent `track`."""
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer = Peer((), ResultLog(16))
    try:
        client.addTransceiver(track, direction="sendonly")
        await client.setLocalDescription(await client.createOffer())
        offer = parse_offer(stereo_offer(client.localDescription.sdp))
        answer = await peer.answer(offer, stereo=True, public_address=None)
        await client.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        yield peer
    finally:
        await client.close()
        await peer.close()


async def waiting(peer: Peer) -> list[Encoded]:
    """All packets of a track that is over."""
    packets = []
    with contextlib.suppress(Closed):
        while True:
            packet = await peer.packets.get()
            assert isinstance(packet, Encoded)
            packets.append(packet)
    return packets


async def test_two_people_on_two_channels_stay_apart() -> None:
    """One speaks loud, one low: neither is heard on the other's channel."""
    sound = tones(2.0, 440, 1000)
    sound[:, 1] //= 4
    track, intake = SoundTrack(sound, speed=4.0), Intake(2, 60.0)
    async with connected(track) as peer:
        await asyncio.wait_for(track.ended.wait(), 30)
        await asyncio.sleep(0.3)
        await peer.stop_media()
        packets = await waiting(peer)
    assert [intake.push(packet, 0.0) for packet in packets] == [None] * len(packets)
    left, right = (samples[SAMPLE_RATE_HZ // 2 :] for samples in joined([*intake.take(), intake.flush()]))
    assert len(left) == len(right) == pytest.approx(1.5 * SAMPLE_RATE_HZ, abs=0.02 * SAMPLE_RATE_HZ)
    assert loudest_hz(left) == pytest.approx(440, abs=3)
    assert loudest_hz(right) == pytest.approx(1000, abs=3)
    assert np.sqrt(np.mean(left**2)) / np.sqrt(np.mean(right**2)) == pytest.approx(4.0, rel=0.1)
    for samples, other_hz in ((left, 1000), (right, 440)):
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        at = round(other_hz * len(samples) / SAMPLE_RATE_HZ)
        assert spectrum[at - 3 : at + 4].max() < spectrum.max() / 30


async def test_a_track_is_decoded_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiortc's own decoder, in a thread for each track, is given nothing to do."""
    decoded: list[object] = []

    def decode(decoder: OpusDecoder, frame: object) -> list[object]:
        decoded.append(frame)
        return []

    monkeypatch.setattr(OpusDecoder, "decode", decode)
    track = SoundTrack(tones(0.5, 440, 440), speed=4.0)
    async with connected(track) as peer:
        await asyncio.wait_for(track.ended.wait(), 30)
        await asyncio.sleep(0.3)
        assert len(peer.packets) == 25
    assert not decoded


async def test_packets_that_nobody_takes_are_dropped_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, extra = 300, 100
    monkeypatch.setattr("daemon.transports.whip.peer.WAITING_PACKETS", waiting)
    track = SoundTrack(np.zeros(((waiting + extra) * PACKET, 2), np.int16), speed=8.0)
    async with connected(track) as peer:
        await asyncio.wait_for(track.ended.wait(), 60)
        await asyncio.sleep(0.3)
        assert len(peer.packets) == waiting
        assert peer.packets.dropped == pytest.approx(extra, abs=5)
        first = await peer.packets.get()
        assert isinstance(first, Encoded)
        assert first.timestamp // PACKET == peer.packets.dropped
        assert packet_samples(first.data) == PACKET


async def test_a_peer_that_never_connects_closes_all_the_same() -> None:
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    client.addTransceiver(SoundTrack(np.zeros((PACKET, 2), np.int16)), direction="sendonly")
    await client.setLocalDescription(await client.createOffer())
    peer = Peer((), ResultLog(16))
    await peer.answer(parse_offer(client.localDescription.sdp), stereo=False, public_address=None)
    await client.close()
    async with asyncio.timeout(10):
        await peer.stop_media()
        await peer.close()
    with pytest.raises(Closed):
        await peer.packets.get()
