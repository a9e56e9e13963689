"""The audio clock of a track: where each decoded frame belongs, what is missing before it, and what to say about that.

Sans-IO. Positions are samples at the track's own rate since its first frame. Times stay true whatever the network does: what
is missing becomes silence of its length.
"""

from dataclasses import dataclass
from typing import Final, Literal

LATE_S: Final = 1.0
"""How long frames may keep coming too late. A network that was held up delivers them faster than that; a sender that goes on
with it has let its clock stand still."""

Reason = Literal["lost", "paused", "dropped"]


@dataclass(frozen=True, slots=True)
class Placed:
    """What becomes of a frame.

    Attributes:
        silence: samples that are missing before it.
        skip: samples at its begin whose place is already taken; all of them if it comes too late.
    """

    silence: int
    skip: int


class Timeline:
    """Places frames by their timestamps.

    Args:
        longest: samples of silence that a jump of the timestamps may mean; beyond it the sender has begun a new clock.

    Attributes:
        position: of the next sample.
    """

    def __init__(self, longest: int) -> None:
        self.position = 0
        self._longest = longest
        self._origin: int | None = None
        self._late_since: float | None = None

    def place(self, timestamp: int, length: int, now: float) -> Placed:
        """Takes the next frame.

        Args:
            timestamp: of its first sample.
            length: in samples.
            now: seconds of any steady clock.
        """
        if self._origin is None:
            self._origin = timestamp - self.position
        ahead = timestamp - self._origin - self.position
        if ahead <= -length:
            self._late_since = now if self._late_since is None else self._late_since
            if now - self._late_since <= LATE_S:
                return Placed(0, length)
        if ahead > self._longest or ahead <= -length:
            self._origin, ahead = timestamp - self.position, 0
        self._late_since = None
        self.position += ahead + length
        return Placed(max(ahead, 0), max(-ahead, 0))

    def restart(self) -> None:
        """The sender has begun a new clock: the next frame follows the last one."""
        self._origin = None

    def pause(self, length: int) -> None:
        """Silence goes in where no frame came."""
        self.position += length


@dataclass(frozen=True, slots=True)
class Gap:
    """Audio that did not arrive, in samples at 16 kHz.

    Attributes:
        start: of the first missing sample.
        end: one past the last one.
        missing: how many are missing between the two.
    """

    start: int
    end: int
    missing: int
    reason: Reason


class Gaps:
    """Joins holes that lie close together, so that a bad network is told once in a while, not with every packet.

    Args:
        window: samples from the first hole after which a gap is told.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._open: Gap | None = None

    def add(self, start: int, end: int, reason: Reason) -> list[Gap]:
        """Takes a hole; gives what is to be told now."""
        told = self.passed(start)
        if self._open is not None and self._open.reason != reason:
            told += self.finish()
        first = self._open.start if self._open else start
        missing = self._open.missing if self._open else 0
        self._open = Gap(first, end, missing + end - start, reason)
        return told

    def passed(self, position: int) -> list[Gap]:
        """What is to be told once the audio has come to `position`."""
        due = self._open is not None and position - self._open.start >= self._window
        return self.finish() if due else []

    def finish(self) -> list[Gap]:
        """What has not been told."""
        told = [self._open] if self._open else []
        self._open = None
        return told
