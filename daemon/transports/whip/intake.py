"""Decoded frames of a track to 16 kHz samples per channel, with silence where audio is missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import av
import numpy as np
import numpy.typing as npt

from daemon.resample import StreamResampler
from daemon.transports.opus import OPUS_RATE_HZ
from daemon.transports.whip.timeline import Timeline
from model.audio import SAMPLE_RATE_HZ, Samples

_RATIO: Final = OPUS_RATE_HZ // SAMPLE_RATE_HZ
_S16: Final = 32768.0


@dataclass(frozen=True, slots=True)
class Piece:
    """The next samples of every channel, `float32 [T]` at 16 kHz.

    Attributes:
        hole: where they stand for audio that did not come, begin and end at 16 kHz; None where it came.
    """

    channels: list[Samples]
    hole: tuple[int, int] | None = None


class Intake:
    """One track.

    Args:
        channels: 1 mixes both channels of the track, 2 keeps them.
        longest_pause_s: see `Timeline`.
    """

    def __init__(self, channels: int, longest_pause_s: float) -> None:
        self._channels = channels
        self._timeline = Timeline(round(longest_pause_s * OPUS_RATE_HZ))
        self._resamplers = [StreamResampler(OPUS_RATE_HZ) for _ in range(channels)]

    @property
    def position(self) -> int:
        """Samples so far, at 16 kHz."""
        return self._timeline.position // _RATIO

    def push(self, frame: av.AudioFrame, now: float) -> Iterator[Piece]:
        """The next frame, with the silence before it.

        Args:
            frame: packed `int16` stereo at 48 kHz, as Opus is decoded.
            now: seconds of any steady clock.
        """
        samples = frame.to_ndarray().reshape(-1, 2)
        before = self._timeline.position
        placed = self._timeline.place(frame.pts or 0, len(samples), now)
        yield from self._silence(before, placed.silence)
        kept = samples[placed.skip :].astype(np.float32) / _S16
        if len(kept):
            yield Piece(self._resample(kept if self._channels == 2 else kept.mean(axis=1, keepdims=True)))

    def pause(self, seconds: float) -> Iterator[Piece]:
        """Silence where no frame came in time."""
        before, missing = self._timeline.position, round(seconds * OPUS_RATE_HZ)
        self._timeline.pause(missing)
        yield from self._silence(before, missing)

    def flush(self) -> Piece:
        """The last samples; nothing may be pushed afterwards."""
        return Piece([resampler.flush() for resampler in self._resamplers])

    def _silence(self, start: int, length: int) -> Iterator[Piece]:
        """In pieces of a second: a long pause is no large block of memory."""
        for begin in range(start, start + length, OPUS_RATE_HZ):
            end = min(begin + OPUS_RATE_HZ, start + length)
            silence = np.zeros((end - begin, self._channels), np.float32)
            yield Piece(self._resample(silence), (begin // _RATIO, end // _RATIO))

    def _resample(self, samples: npt.NDArray[np.float32]) -> list[Samples]:
        """Of `float32 [T, C]` at 48 kHz."""
        return [
            resampler.push(np.ascontiguousarray(samples[:, channel]))
            for channel, resampler in enumerate(self._resamplers)
        ]
