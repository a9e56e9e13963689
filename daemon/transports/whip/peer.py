"""One peer connection: packets of audio out of it, results into it.

aiortc would decode every track in a thread of its own and buffer what it decoded without bound. Packets are taken from it
before that, into a queue that drops its oldest ones.
"""

import asyncio
import secrets
import string
from collections.abc import Callable, Iterable
from typing import Final

from aiortc import (
    MediaStreamError,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceCandidate,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamTrack
from aiortc.sdp import candidate_from_sdp

from daemon.channel import Channel, Overflow
from daemon.errors import PeerError
from daemon.stream import cancelled
from daemon.transports.whip.reorder import Encoded, Packet, Reorder
from daemon.transports.whip.results import ResultLog
from daemon.transports.whip.rules import IceServer
from daemon.transports.whip.sdp import MAX_CANDIDATES, Credentials, Offer, local_candidates, write_answer

WAITING_PACKETS: Final = 1000
"""While the models are behind: 20 s at the usual 20 ms a packet. A sender in real time cannot be told to wait, and what waits
is to be scored within `limits.drain_timeout_s` once we stop."""
_MAX_BUFFERED_BYTES: Final = 1 << 18
"""Of results on the way to a client that is slow; the rest waits in the log."""
_CLOSE_S: Final = 5.0
_JITTER_BUFFER: Final = "_RTCRtpReceiver__jitter_buffer"
"""Private to aiortc, which has no other place for one's own; see `daemon.transports.whip.reorder`."""
_ICE_CHARACTERS: Final = string.ascii_letters + string.digits


class Finalize:
    """Stands among the packets where open utterances are to end."""


FINALIZE: Final = Finalize()


class Peer:
    """The server's end of one WHIP session.

    Args:
        servers: for addresses of our own behind a NAT.
        log: what a data channel tells.

    Attributes:
        packets: of Opus, in order, and `FINALIZE` where the client asked for it; closed once nothing more comes.
        heard: takes every text that the client says over a data channel.
        candidates: our addresses.
    """

    def __init__(self, servers: Iterable[IceServer], log: ResultLog) -> None:
        ice = [RTCIceServer(list(server.urls), server.username, server.credential) for server in servers]
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=ice, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._pc.on("track", self._receive)
        self._pc.on("datachannel", self._open)
        self._pc.on("connectionstatechange", self._state_changed)
        self._log = log
        self._over = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._resolving: set[asyncio.Task[None]] = set()
        self._order = Reorder()
        self._mid = ""
        self._signalled = 0
        self.packets: Channel[Encoded | Finalize] = Channel(WAITING_PACKETS, Overflow.DROP_OLDEST)
        self.heard: Callable[[str], None] = lambda text: None
        self.candidates: tuple[str, ...] = ()

    @property
    def connected(self) -> bool:
        """Whether media can come."""
        return self._pc.connectionState == "connected"

    @property
    def failed(self) -> bool:
        """Whether the client vanished without a word."""
        return self._pc.connectionState == "failed"

    async def answer(self, offer: Offer, *, stereo: bool, public_address: str | None) -> str:
        """Accepts an offer; the answer holds all our candidates."""
        await self._pc.setRemoteDescription(RTCSessionDescription(offer.taken, "offer"))
        await self._pc.setLocalDescription(await self._pc.createAnswer())
        self._mid = offer.mid
        self.trickle(offer.candidates, complete=offer.complete)
        answer = write_answer(offer, self._pc.localDescription.sdp, stereo=stereo, public_address=public_address)
        self.candidates = local_candidates(answer)
        return answer

    def trickle(self, candidates: Iterable[str], *, complete: bool) -> None:
        """Takes more of the client's candidates.

        Raises:
            PeerError: "too_many_candidates", if there were too many in all.
        """
        found = [candidate_from_sdp(text) for text in candidates]
        if self._signalled + len(found) > MAX_CANDIDATES:
            told = self._signalled + len(found)
            raise PeerError("too_many_candidates", f"{told} candidates in one session, the limit is {MAX_CANDIDATES}")
        self._signalled += len(found)
        # A name on the client's own network takes seconds to resolve, or for ever: nobody waits for it.
        task = asyncio.create_task(self._add(found, complete))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _add(self, candidates: list[RTCIceCandidate], complete: bool) -> None:
        for candidate in candidates:
            candidate.sdpMid = self._mid
        await asyncio.gather(*(self._pc.addIceCandidate(candidate) for candidate in candidates))
        if complete:
            await self._pc.addIceCandidate(None)

    def restart(self, remote: Credentials) -> Credentials:
        """Begins a new ICE session under the same DTLS one; returns our new credentials.

        The client, which has the controlling role, checks our addresses again; we answer with the new credentials and follow
        the pair that it nominates. aiortc has no word for that, but its ICE agent accepts such checks at any time.
        """
        new = Credentials(_random(8), _random(24))
        connection = self._pc.getTransceivers()[0].receiver.transport.transport.iceGatherer._connection
        connection._local_username, connection._local_password = new.username, new.password
        connection.remote_username, connection.remote_password = remote.username, remote.password
        self._signalled = 0
        return new

    async def stop_media(self) -> None:
        """No more audio; what has come can still be taken."""
        for transceiver in self._pc.getTransceivers():
            await transceiver.stop()
        if self._draining is not None:
            await asyncio.wait({self._draining}, timeout=1.0)  # one that never began never ends
            await cancelled(self._draining)
        await self._end()

    async def goodbye(self, timeout_s: float) -> None:
        """Waits until a client with a data channel has hung up, which it does once it has read the end."""
        if self._telling is not None and self.connected:
            await asyncio.wait({self._telling}, timeout=timeout_s)
            over = asyncio.create_task(self._over.wait())
            await asyncio.wait({over}, timeout=timeout_s)
            await cancelled(over)

    async def close(self) -> None:
        """Frees everything."""
        for task in [self._telling, self._draining, *self._resolving]:
            if task is not None:
                await cancelled(task)
        closing = asyncio.create_task(self._pc.close())
        await asyncio.wait({closing}, timeout=_CLOSE_S)
        await cancelled(closing)

    def _receive(self, track: MediaStreamTrack) -> None:
        receiver = self._pc.getReceivers()[0]
        if not hasattr(receiver, _JITTER_BUFFER):
            raise RuntimeError(f"this version of aiortc has no {_JITTER_BUFFER}; 1.15 and 1.16 have")
        setattr(receiver, _JITTER_BUFFER, _Tap(self._take))
        self._draining = asyncio.create_task(self._watch(track), name="track")

    def _take(self, packet: Packet) -> None:
        for encoded in self._order.add(packet):
            self.packets.offer(encoded)

    async def _watch(self, track: MediaStreamTrack) -> None:
        """Waits for the end of a track, which has nothing else to say: no packet reaches its decoder."""
        try:
            while True:
                await track.recv()
        except MediaStreamError:
            await self._end()

    async def _end(self) -> None:
        for encoded in self._order.finish():
            self.packets.offer(encoded)
        await self.packets.close()

    def _open(self, channel: RTCDataChannel) -> None:
        channel.on("message", self._say)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(channel), name="data channel")

    def _say(self, message: str | bytes) -> None:
        self.heard(message if isinstance(message, str) else message.decode(errors="replace"))

    async def _tell(self, channel: RTCDataChannel) -> None:
        room = asyncio.Event()
        channel.bufferedAmountLowThreshold = _MAX_BUFFERED_BYTES // 2
        channel.on("bufferedamountlow", room.set)
        async for message in self._log.read():
            while channel.readyState == "open" and channel.bufferedAmount > _MAX_BUFFERED_BYTES:
                room.clear()
                await room.wait()
            if channel.readyState != "open":
                return
            if message is not None:
                channel.send(message[1])

    async def _state_changed(self) -> None:
        if self._pc.connectionState in ("failed", "closed"):
            self._over.set()
            # Whether or not the track notices: a peer that is gone sends nothing more.
            await self.stop_media()


class _Tap:
    """Stands where aiortc has its jitter buffer, and lets nothing through to the decoder."""

    def __init__(self, take: Callable[[Packet], None]) -> None:
        self._take = take

    def add(self, packet: Packet) -> tuple[bool, None]:
        """Takes a packet; neither asks for a picture nor has a frame."""
        self._take(packet)
        return False, None


def _random(length: int) -> str:
    return "".join(secrets.choice(_ICE_CHARACTERS) for _ in range(length))
