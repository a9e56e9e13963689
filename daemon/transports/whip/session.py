"""One WHIP session: a peer connection's audio into one stream, from the answer to the last result."""

import asyncio
import contextlib
from typing import Any, Final

from daemon import wire
from daemon.channel import Closed
from daemon.errors import CLOSE_POLICY, PeerError
from daemon.request import parse_object
from daemon.stream import GOING_AWAY, MODEL_FAILED, SERVER_ERROR, Ending, Stream, cancelled
from daemon.streams import Streams
from daemon.transports.opus import OPUS_RATE_HZ, packet_samples
from daemon.transports.whip.intake import Hole, Intake
from daemon.transports.whip.peer import FINALIZE, Finalize, Peer
from daemon.transports.whip.reorder import Encoded
from daemon.transports.whip.results import ResultLog
from daemon.transports.whip.timeline import Gap, Gaps, Reason
from model.audio import SAMPLE_RATE_HZ, VAD_WINDOW

CLIENT_CLOSED: Final = Ending("client_closed")
_CLIENT_GONE: Final = Ending("client_gone")
CONNECT_S: Final = 20.0
"""How long a session may hold its place without a connection."""
_TICK_S: Final = 0.5
_GRACE_S: Final = 2.0
"""Packets may be this late before silence stands in for them: then speech that a client broke off can end."""
_GAP_WINDOW: Final = SAMPLE_RATE_HZ
_FAREWELL_S: Final = 2.0


class WhipSession:
    """Runs one session.

    Args:
        peer: connected, or about to be.
        log: of the stream's messages.
        stream: just opened.
        streams: of the process.
        held: what the session holds, its place among the streams and its peer; let go at its end.
    """

    def __init__(
        self, peer: Peer, log: ResultLog, stream: Stream, streams: Streams, held: contextlib.AsyncExitStack
    ) -> None:
        self._peer = peer
        self._log = log
        self._stream = stream
        self._streams = streams
        self._holds = held
        self._intake = Intake(len(stream.info.roles), streams.rules.idle_timeout_s)
        self._gaps = Gaps(_GAP_WINDOW)
        self._asked: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._alive_at = asyncio.get_running_loop().time()
        self._fed_at: float | None = None
        self._counted_dropped = 0
        peer.heard = self._hear

    def end(self, ending: Ending = CLIENT_CLOSED) -> None:
        """Ends the session; what came before is scored."""
        if not self._asked.done():
            self._asked.set_result(ending)

    def _hear(self, text: str) -> None:
        """Takes a message that the client sent over a data channel: the control messages of the native protocol."""
        self._alive_at = asyncio.get_running_loop().time()
        try:
            kind = parse_object(text).get("type")
            if kind == "finalize":
                self._peer.packets.offer(FINALIZE)
            elif kind == "close":
                self.end()
            elif kind != "keep_alive":
                raise PeerError(
                    "bad_type", f"message type {kind!r:.80} is not known; there are keep_alive, finalize and close"
                )
        except PeerError as error:
            self.end(Ending.of(error))

    async def run(self) -> None:
        """From the answer to the end."""
        ending = SERVER_ERROR
        try:
            ending = await self._serve()
        finally:
            await asyncio.shield(self._finish(ending))

    async def _serve(self) -> Ending:
        feeding = asyncio.create_task(self._feed(), name="feeding")
        draining = asyncio.create_task(self._streams.drained())
        scoring = self._stream.scoring
        try:
            watched: set[asyncio.Future[Any]] = {feeding, draining, scoring, self._asked}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                return feeding.result()
            if scoring.done():
                return MODEL_FAILED
            ending = self._asked.result() if self._asked.done() else GOING_AWAY
            await self._peer.stop_media()
            await asyncio.wait({feeding, scoring}, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
            return ending
        finally:
            await cancelled(draining)
            await cancelled(feeding)
            self._leave_out()

    def _leave_out(self) -> None:
        """Tells what came and will not be heard, because there is no time left or too much was sent."""
        left = sum(_samples(packet.data) for packet in self._peer.packets.rest() if isinstance(packet, Encoded))
        missing = self._intake.held + left
        if missing:
            start = self._intake.position - self._intake.held
            self._tell([*self._gaps.add(start, start + missing, "dropped"), *self._gaps.finish()])

    async def _feed(self) -> Ending:
        """Hands on audio until no more comes, and says why."""
        try:
            ending = await self._listen()
            await self._hand_over()
            await self._stream.feed(self._intake.flush())
        except PeerError as error:
            return Ending.of(error)
        self._tell(self._gaps.finish())
        return ending

    async def _listen(self) -> Ending:
        while True:
            try:
                async with asyncio.timeout(_TICK_S):
                    packet = await self._peer.packets.get()
            except TimeoutError:
                idle = await self._wait_on()
                if idle is not None:
                    return Ending.of(idle)
                continue
            except Closed:
                return _CLIENT_GONE if self._peer.failed else CLIENT_CLOSED
            if isinstance(packet, Finalize):
                await self._hand_over()
                await self._stream.finalize()
                continue
            reason, now = self._reason(packet), asyncio.get_running_loop().time()
            self._miss(self._intake.push(packet, now), reason)
            if not self._intake.spoiled:
                self._fed_at = self._alive_at = now
            elif (idle := await self._wait_on()) is not None:
                return Ending.of(idle)
            if self._intake.held >= VAD_WINDOW:
                await self._hand_over()
                await asyncio.sleep(0)  # others get their turn while this one catches up

    async def _wait_on(self) -> PeerError | None:
        """No audio for a while: silence stands in, or the client is given up."""
        now = asyncio.get_running_loop().time()
        limit = self._streams.rules.idle_timeout_s
        if not self._peer.connected:
            limit = min(limit, CONNECT_S)
        if now - self._alive_at > limit:
            return PeerError("idle", f"no audio for {limit:g} s", CLOSE_POLICY)
        if self._fed_at is not None and (missing := now - self._fed_at - _GRACE_S) > 0:
            self._fed_at += missing
            self._miss(self._intake.pause(missing), "paused")
            await self._hand_over()
        return None

    def _reason(self, packet: Encoded) -> Reason:
        """Why audio is missing before a packet, if it is."""
        dropped = self._peer.packets.dropped
        reason: Reason = "lost" if packet.lost or self._intake.spoiled else "paused"
        if dropped > self._counted_dropped:
            self._counted_dropped, reason = dropped, "dropped"
        return reason

    def _miss(self, hole: Hole | None, reason: Reason) -> None:
        if hole is not None:
            self._tell(self._gaps.add(*hole, reason))
        self._tell(self._gaps.passed(self._intake.position))

    async def _hand_over(self) -> None:
        for channels in self._intake.take():
            await self._stream.feed(channels)

    def _tell(self, gaps: list[Gap]) -> None:
        channels = range(len(self._stream.info.roles))
        for gap in gaps:
            self._stream.notify(wire.gap(channels, gap.start, gap.end, gap.missing, gap.reason))

    async def _finish(self, ending: Ending) -> None:
        """Lets the stream finish, tells the rest, frees everything."""
        try:
            if ending.error is not None:
                self._streams.metrics.peer_errors.labels(ending.error.code).inc()
            await self._stream.finish(ending)
            self._log.close()
            await self._peer.goodbye(_FAREWELL_S)
        finally:
            self._log.close()
            await self._holds.aclose()


def _samples(packet: bytes) -> int:
    """Length of an Opus packet at 16 kHz; 0 of what is none."""
    try:
        return packet_samples(packet) * SAMPLE_RATE_HZ // OPUS_RATE_HZ
    except PeerError:
        return 0
