"""RTP packets of a track in their order, as soon as they can be had; sans-IO.

It takes the place of aiortc's own jitter buffer, which throws away the four good packets before every lost one, and holds the
last four back until more come: with a tenth of the packets lost, half of the audio went, and the last words of a call always.
"""

from collections import deque
from typing import Final, Protocol

from aiortc.jitterbuffer import JitterFrame

DEPTH: Final = 4
"""Packets that are awaited by a missing one before it counts as lost: 80 ms at the usual 20 ms a packet."""
_RESTART: Final = 500
"""A sequence number further off than this belongs to a sender that began anew."""
_SEQUENCE: Final = 1 << 16
_TIMESTAMP: Final = 1 << 32
_REMEMBERED: Final = 4096


class Packet(Protocol):
    """What is needed of an RTP packet (RFC 3550, 5.1); `_data` is its payload without the codec's own header."""

    sequence_number: int
    timestamp: int
    _data: bytes


class Reorder:
    """One track's packets. A frame of Opus is one packet (RFC 7587, 4.2)."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._waiting: dict[int, Packet] = {}
        self._first: int | None = None
        self._losses: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)

    def add(self, packet: Packet) -> tuple[bool, JitterFrame | None]:
        """Takes a packet; gives the next one in order, if it is there, and never asks for a picture."""
        if self._next is None:
            self._next = packet.sequence_number
        ahead = (packet.sequence_number - self._next + _SEQUENCE // 2) % _SEQUENCE - _SEQUENCE // 2
        if abs(ahead) > _RESTART:
            self._waiting.clear()
            self._next, ahead = packet.sequence_number, 0
        if ahead < 0:
            return False, None  # it came twice, or too late
        self._waiting[self._next + ahead] = packet
        return False, self._pop()

    def lost_before(self, timestamp: int) -> int:
        """Packets that were lost right before the frame of that timestamp, counted from the first one's.

        Asked in the order of the frames, once for each.
        """
        wanted = timestamp % _TIMESTAMP
        while self._losses:
            found, lost = self._losses[0]
            if (found - wanted) % _TIMESTAMP < _TIMESTAMP // 2 and found != wanted:
                return 0
            self._losses.popleft()
            if found == wanted:
                return lost
        return 0

    def _pop(self) -> JitterFrame | None:
        lost = 0
        while self._waiting:
            first = min(self._waiting)
            assert self._next is not None
            if first != self._next and len(self._waiting) <= DEPTH:
                return None
            lost += first - self._next
            self._next = first + 1
            packet = self._waiting.pop(first)
            if packet._data:
                return self._frame(packet, lost)
        return None

    def _frame(self, packet: Packet, lost: int) -> JitterFrame:
        if self._first is None:
            self._first = packet.timestamp
        if lost:
            self._losses.append(((packet.timestamp - self._first) % _TIMESTAMP, lost))
        return JitterFrame(packet._data, packet.timestamp)
