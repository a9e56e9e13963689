"""Tracks that arrive apart, put side by side on the audio clock. Sans-IO; the audio itself is the clock.

A telephone fork sends each side of a call in messages of its own, stamped with their place in the stream. Messages may be
missing, late, twice there or out of order, one side may fall behind or never speak; what comes out are frames of all tracks,
gapless, in which what is missing is silence:

    inbound   [0 20 40    80 100]      ->  [0 20 40 .. 80 100]
    outbound     [20 60 40 80]         ->  [.. 20 40 60 80 ..]     once `lag` has passed

Stamps waver by some ms while the audio does not, so a message within half its length of where the last one ended follows it.

Shapes: T = samples of one track at the wire's rate, W = bytes of a sample in the wire's encoding.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from daemon.errors import PeerError

_Bytes = npt.NDArray[np.uint8]
"""`uint8 [T, W]`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long tracks wait, in samples of the wire.

    Attributes:
        reorder: a hole in a track may be filled later by what was sent earlier; 0 where messages keep their order.
        lag: a track that is this far behind the furthest one is taken for silent.
        hole: the longest hole that is believed.
    """

    reorder: int
    lag: int
    hole: int


@dataclass(slots=True)
class Counts:
    """What did not arrive as it should have, in samples of the wire over all tracks.

    Attributes:
        missing: filled with silence.
        late: left out, because silence stood in for it already.
    """

    missing: int = 0
    late: int = 0


@dataclass(slots=True)
class _Track:
    waiting: list[tuple[int, int, _Bytes]] = field(default_factory=list)
    """Heap of what may not be placed yet: where it starts, when it came, what it is."""
    starts: set[int] = field(default_factory=set)
    """Of what waits: the same message again would wait with it, without a bound."""
    ready: list[_Bytes] = field(default_factory=list)
    head: int = 0
    """Where `ready` ends."""
    end: int = 0
    """Where the furthest message ends."""


class Tracks:
    """The tracks of one stream.

    Args:
        count: how many.
        silence: one sample of it in the wire's encoding.
        patience: how long they wait for each other.
    """

    def __init__(self, count: int, silence: bytes, patience: Patience) -> None:
        self._tracks = [_Track() for _ in range(count)]
        self._silence = np.frombuffer(silence, np.uint8)
        self._patience = patience
        self._taken = 0
        self._arrived = 0
        self.counts = Counts()

    def push(self, track: int, start: int, data: bytes) -> bytes:
        """Takes a message of `track` that starts at sample `start`; gives the frames that are complete, interleaved.

        Raises:
            PeerError: if the message lies too far ahead to be of this stream.
        """
        samples = np.frombuffer(data, np.uint8).reshape(-1, len(self._silence))
        furthest = max(each.end for each in self._tracks)
        if start - furthest > self._patience.hole:
            raise PeerError(
                "bad_timestamp",
                f"a message lies {start - furthest} samples ahead of the stream; at most {self._patience.hole} may be missing",
            )
        into = self._tracks[track]
        if start in into.starts:
            self.counts.late += len(samples)
            return b""
        self._arrived += 1
        into.starts.add(start)
        heapq.heappush(into.waiting, (start, self._arrived, samples))
        into.end = max(into.end, start + len(samples))
        behind = max(furthest, into.end) - self._patience.lag
        for each in self._tracks:
            self._place(each, max(each.end - self._patience.reorder, behind))
            self._fill(each, behind)
        return self._take()

    def flush(self) -> bytes:
        """The rest, where nothing more comes: what waits is placed, and tracks that ended early end in silence."""
        for each in self._tracks:
            self._place(each, each.end)
        for each in self._tracks:
            self._fill(each, max(other.head for other in self._tracks))
        return self._take()

    def _place(self, track: _Track, lost: int) -> None:
        """Moves what waits behind its track, in order, up to the first hole; holes before `lost` are silence."""
        while track.waiting:
            start, _, samples = track.waiting[0]
            hole = start - track.head
            if 2 * hole >= len(samples) and hole > 0:
                if start > lost:
                    return
                self._fill(track, start)
            heapq.heappop(track.waiting)
            track.starts.discard(start)
            if hole <= -len(samples):
                self.counts.late += len(samples)
                continue
            track.ready.append(samples)
            track.head += len(samples)

    def _fill(self, track: _Track, end: int) -> None:
        missing = end - track.head
        if missing > 0:
            self.counts.missing += missing
            track.ready.append(np.broadcast_to(self._silence, (missing, len(self._silence))))
            track.head = end

    def _take(self) -> bytes:
        """What every track has."""
        count = min(track.head for track in self._tracks) - self._taken
        if count <= 0:
            return b""
        self._taken += count
        columns = []
        for track in self._tracks:
            whole = np.concatenate(track.ready)
            columns.append(whole[:count])
            track.ready = [whole[count:]] if len(whole) > count else []
        return np.stack(columns, axis=1).tobytes()
