"""Bytes of a stream to 16 kHz samples per channel: decoding and streaming resampling.

The resampler carries its state, so the way that a stream is cut into messages does not change its samples by more than the
rounding of a float32.

Source: ITU-T G.711 for mu-law and A-law; FFmpeg's swresample through PyAV.
"""

from functools import cache
from typing import Final

import av
import numpy as np
import numpy.typing as npt

from daemon.errors import CLOSE_BAD_DATA, CLOSE_UNSUPPORTED, PeerError
from model.audio import SAMPLE_RATE_HZ, Samples

ENCODINGS: Final = {"linear16": 2, "float32": 4, "mulaw": 1, "alaw": 1}
"""Encoding -> bytes per sample."""
LOWEST_RATE_HZ: Final = 4_000
HIGHEST_RATE_HZ: Final = 192_000
CHANNELS: Final = (1, 2)


@cache
def _mulaw_table() -> npt.NDArray[np.float32]:
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4) & 7, code & 15
    magnitude = ((mantissa.astype(np.int32) << 3) + 132 << exponent.astype(np.int32)) - 132
    return (np.where(code & 128, -magnitude, magnitude) / 32768.0).astype(np.float32)


@cache
def _alaw_table() -> npt.NDArray[np.float32]:
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, (mantissa << 4) + 264 << np.maximum(exponent - 1, 0))
    return (np.where(code & 128, magnitude, -magnitude) / 32768.0).astype(np.float32)


class AudioDecoder:
    """Decodes the binary messages of one stream.

    Args:
        encoding: one of `ENCODINGS`.
        sample_rate: in Hz.
        channels: interleaved channels.

    Raises:
        PeerError: if the server cannot take such a stream.
    """

    def __init__(self, encoding: str, sample_rate: int, channels: int) -> None:
        if encoding not in ENCODINGS:
            raise PeerError(
                "bad_encoding",
                f"encoding {encoding!r} is not known; use one of {', '.join(ENCODINGS)}",
                CLOSE_UNSUPPORTED,
            )
        if not LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ:
            raise PeerError(
                "bad_sample_rate",
                f"sample_rate {sample_rate} lies outside {LOWEST_RATE_HZ}..{HIGHEST_RATE_HZ} Hz",
                CLOSE_UNSUPPORTED,
            )
        if channels not in CHANNELS:
            raise PeerError("bad_channels", f"channels {channels} is not 1 or 2", CLOSE_UNSUPPORTED)
        self.frame_bytes = ENCODINGS[encoding] * channels
        """Of one sample of every channel."""
        self._encoding = encoding
        self._channels = channels
        self._resamplers = [StreamResampler(sample_rate) for _ in range(channels)]

    def decode(self, data: bytes) -> list[Samples]:
        """Samples at 16 kHz of every channel that `data` completes.

        Raises:
            PeerError: if the message holds a part of a sample, or numbers that are not finite.
        """
        frame = self.frame_bytes
        if len(data) % frame:
            raise PeerError(
                "bad_frame",
                f"a message of {len(data)} bytes is no whole number of {frame}-byte frames "
                f"({self._encoding}, {self._channels} channel{'s' if self._channels > 1 else ''})",
                CLOSE_BAD_DATA,
            )
        interleaved = self._to_float(data).reshape(-1, self._channels)
        return [
            resampler.push(np.ascontiguousarray(interleaved[:, channel]))
            for channel, resampler in enumerate(self._resamplers)
        ]

    def flush(self) -> list[Samples]:
        """What the resamplers still hold at the end of the stream."""
        return [resampler.flush() for resampler in self._resamplers]

    def _to_float(self, data: bytes) -> Samples:
        if self._encoding == "linear16":
            return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
        if self._encoding == "mulaw":
            return _mulaw_table()[np.frombuffer(data, np.uint8)]
        if self._encoding == "alaw":
            return _alaw_table()[np.frombuffer(data, np.uint8)]
        samples = np.frombuffer(data, "<f4").astype(np.float32)
        if not np.isfinite(samples).all():
            raise PeerError(
                "not_finite", "a float32 message holds NaN or infinity; samples lie in -1..1", CLOSE_BAD_DATA
            )
        return np.clip(samples, -1.0, 1.0)


class StreamResampler:
    """One channel from any rate to 16 kHz; at 16 kHz it passes samples through."""

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._resampler = (
            None if sample_rate == SAMPLE_RATE_HZ else av.AudioResampler("fltp", layout="mono", rate=SAMPLE_RATE_HZ)
        )
        self._used = False

    def push(self, samples: Samples) -> Samples:
        """The next samples `float32 [T]`, at 16 kHz as far as they are complete."""
        if self._resampler is None:
            return samples
        if len(samples) == 0:
            return np.zeros(0, np.float32)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = self._rate
        self._used = True
        return _join(self._resampler.resample(frame))

    def flush(self) -> Samples:
        """The last samples; the resampler must not be used afterwards."""
        if self._resampler is None or not self._used:
            return np.zeros(0, np.float32)
        return _join(self._resampler.resample(None))


def _join(frames: list[av.AudioFrame]) -> Samples:
    if not frames:
        return np.zeros(0, np.float32)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32, copy=False)
