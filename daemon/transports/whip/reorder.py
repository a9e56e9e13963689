"""RTP packets of a track in their order, as soon as they can be had; sans-IO.

It takes the place of aiortc's own jitter buffer, which throws away the four good packets before every lost one, and holds the
last four back until more come: with a tenth of the packets lost, half of the audio went, and the last words of a call always.
"""

from dataclasses import dataclass
from typing import Final, Protocol

DEPTH: Final = 4
"""Packets that are awaited by a missing one before it counts as lost: 80 ms at the usual 20 ms a packet."""
_RESTART: Final = 500
"""A sequence number further off than this belongs to a sender that began anew."""
_SEQUENCE: Final = 1 << 16
_TIMESTAMP: Final = 1 << 32


class Packet(Protocol):
    """What is needed of an RTP packet (RFC 3550, 5.1); `_data` is its payload without the codec's own header."""

    sequence_number: int
    timestamp: int
    _data: bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """A packet of the codec, in its turn.

    Attributes:
        data: what the codec takes.
        timestamp: of its first sample, at the track's rate, counted from the first packet's; it does not wrap.
        lost: packets that were lost right before it.
        anew: the sender has begun a new clock with it.
    """

    data: bytes
    timestamp: int
    lost: int
    anew: bool = False


class Reorder:
    """One track's packets. A frame of Opus is one packet (RFC 7587, 4.2)."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._waiting: dict[int, Packet] = {}
        self._lost = 0
        self._anew = False
        self._clock: tuple[int, int] | None = None

    def add(self, packet: Packet) -> list[Encoded]:
        """Takes a packet; gives what can be had in order by now."""
        if self._next is None:
            self._next = packet.sequence_number
        ahead = (packet.sequence_number - self._next + _SEQUENCE // 2) % _SEQUENCE - _SEQUENCE // 2
        if abs(ahead) > _RESTART:
            self._waiting.clear()
            self._next, ahead, self._anew = packet.sequence_number, 0, True
        if ahead < 0:
            return []  # it came twice, or too late
        self._waiting[self._next + ahead] = packet
        return self._take(DEPTH)

    def finish(self) -> list[Encoded]:
        """What still waited for others, once no more come."""
        return self._take(0)

    def _take(self, awaited: int) -> list[Encoded]:
        """What is next in order; what is missing is given up while more than `awaited` packets wait for it."""
        found = []
        while self._waiting:
            first = min(self._waiting)
            assert self._next is not None
            if first != self._next and len(self._waiting) <= awaited:
                break
            self._lost += first - self._next
            self._next = first + 1
            packet = self._waiting.pop(first)
            if packet._data:
                found.append(Encoded(packet._data, self._unwrapped(packet.timestamp), self._lost, self._anew))
                self._lost, self._anew = 0, False
        return found

    def _unwrapped(self, timestamp: int) -> int:
        if self._clock is None:
            self._clock = (timestamp, 0)
        last, position = self._clock
        position += (timestamp - last + _TIMESTAMP // 2) % _TIMESTAMP - _TIMESTAMP // 2
        self._clock = (timestamp, position)
        return position
