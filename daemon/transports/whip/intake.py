"""Packets of a track to 16 kHz samples per channel, with silence where audio is missing.

Decoding and resampling 20 ms cost the event loop less than 0.1 ms (docs/LOG.md). In a thread of its own for every track, as
aiortc does it, handing over and waiting for Python's lock cost more: thirty tracks took turns so slowly that they lost audio.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from daemon.errors import PeerError
from daemon.resample import StreamResampler
from daemon.transports.opus import OPUS_RATE_HZ, OpusCodec
from daemon.transports.whip.reorder import Encoded
from daemon.transports.whip.timeline import Timeline
from model.audio import SAMPLE_RATE_HZ, Samples

_RATIO: Final = OPUS_RATE_HZ // SAMPLE_RATE_HZ

Hole = tuple[int, int]
"""Audio that did not come: its begin and end in samples at 16 kHz."""


class Intake:
    """One track: takes packets, and gives samples by the piece.

    Args:
        channels: 1 mixes both channels of the track, 2 keeps them.
        longest_pause_s: see `Timeline`.
    """

    def __init__(self, channels: int, longest_pause_s: float) -> None:
        self._channels = channels
        self._codec = OpusCodec(channels)
        self._timeline = Timeline(round(longest_pause_s * OPUS_RATE_HZ))
        self._resamplers = [StreamResampler(OPUS_RATE_HZ) for _ in range(channels)]
        self._held: list[Samples | int] = []
        """At 48 kHz, `float32 [channels, T]`, and lengths of silence."""
        self._taken = 0
        self._spoiled = False

    @property
    def position(self) -> int:
        """Samples so far, at 16 kHz."""
        return self._timeline.position // _RATIO

    @property
    def spoiled(self) -> bool:
        """Whether the last packet could not be decoded: what is missing before the next one is lost."""
        return self._spoiled

    @property
    def held(self) -> int:
        """Of them, those that were not taken."""
        return self.position - self._taken

    def push(self, packet: Encoded, now: float) -> Hole | None:
        """Holds the next packet, and silence for what is missing before it.

        A packet that cannot be decoded is missing itself, which shows when the next one comes.

        Args:
            packet: of Opus.
            now: seconds of any steady clock.
        """
        try:
            samples = self._codec.decode(packet.data)
        except PeerError:
            self._spoiled = True
            return None
        self._spoiled = False
        if packet.anew:
            self._timeline.restart()
        before = self._timeline.position
        placed = self._timeline.place(packet.timestamp, samples.shape[1], now)
        hole = self._silence(before, placed.silence)
        if placed.skip < samples.shape[1]:
            self._held.append(samples[:, placed.skip :])
        return hole

    def pause(self, seconds: float) -> Hole | None:
        """Silence where no packet came in time."""
        before, missing = self._timeline.position, round(seconds * OPUS_RATE_HZ)
        self._timeline.pause(missing)
        return self._silence(before, missing)

    def take(self) -> Iterator[list[Samples]]:
        """What is held, `float32 [T]` of every channel, at most about a second at a time: a long pause is no large block."""
        held, self._held, self._taken = self._held, [], self.position
        together: list[Samples] = []
        for piece in held:
            if isinstance(piece, int):
                together += [np.zeros((self._channels, length), np.float32) for length in _seconds(piece)[:1]]
                for length in _seconds(piece)[1:]:
                    yield self._resampled(together)
                    together = [np.zeros((self._channels, length), np.float32)]
            else:
                together.append(piece)
        if together:
            yield self._resampled(together)

    def flush(self) -> list[Samples]:
        """The last samples, once the rest was taken; nothing may be pushed afterwards."""
        return [resampler.flush() for resampler in self._resamplers]

    def _silence(self, start: int, length: int) -> Hole | None:
        if not length:
            return None
        self._held.append(length)
        return start // _RATIO, (start + length) // _RATIO

    def _resampled(self, pieces: list[Samples]) -> list[Samples]:
        """Of `float32 [channels, T]` each."""
        samples = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
        return [
            resampler.push(np.ascontiguousarray(samples[channel])) for channel, resampler in enumerate(self._resamplers)
        ]


def _seconds(length: int) -> list[int]:
    """A length in parts of a second, and what is left."""
    whole, rest = divmod(length, OPUS_RATE_HZ)
    return [OPUS_RATE_HZ] * whole + ([rest] if rest else [])
