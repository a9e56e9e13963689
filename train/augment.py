"""Other rooms, microphones and lines: what a clip might have sounded like elsewhere.

A corpus is recorded in one room with one microphone, so features learn that room too. A degraded copy keeps the words and
the voice and changes the channel: the colour of microphone and room, reverberation, noise, a telephone's band, the
companding of its codec, the level.

Shapes: T = samples.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE_HZ, Samples

DEGRADATION: Final = 1
"""Version of the rules below: part of the name of what is cached."""

_COLOUR_DB: Final = 8.0
"""Standard deviation of the random frequency response, at points an octave apart."""
_COLOUR_CENTRES_HZ: Final = 62.5 * 2.0 ** np.arange(8)
_REVERBERATION_S: Final = (0.1, 0.7)
"""Range of the time in which a room's echo falls by 60 dB."""
_REVERBERANT_DB: Final = (-12.0, 3.0)
"""Range of reverberant over direct energy."""
_SNR_DB: Final = (5.0, 35.0)
_LEVEL_DB: Final = (-30.0, 0.0)
"""Range of the peak after all, in dB of full scale."""
_TELEPHONE_HZ: Final = (300.0, 3400.0)
_MU: Final = 255.0
"""Companding constant of G.711 mu-law."""


def degrade(samples: Samples, rng: np.random.Generator) -> Samples:
    """One random recording of the same speech, `float32 [T]` with |x| <= 1 as its input.

    Raises:
        ValueError: if there is no sample.
    """
    if not len(samples):
        raise ValueError("a recording to degrade has at least one sample, got 0")
    degraded = _colour(samples.astype(np.float64), rng)
    if rng.random() < 0.4:
        degraded = _reverberate(degraded, rng)
    if rng.random() < 0.7:
        degraded = degraded + _noise(degraded, rng)
    telephone = rng.random() < 0.35
    if telephone:
        degraded = _band(degraded, *_TELEPHONE_HZ)
    peak = max(float(np.abs(degraded).max()), 1e-9)
    degraded *= 10.0 ** (rng.uniform(*_LEVEL_DB) / 20.0) / peak
    if telephone:
        degraded = _companded(degraded)
    return degraded.astype(np.float32)


def _filtered(samples: npt.NDArray[np.float64], response: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    filtered: npt.NDArray[np.float64] = np.fft.irfft(np.fft.rfft(samples) * response, len(samples))
    return filtered


def _hertz(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ), np.float64)


def _colour(samples: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A smooth random frequency response, as of another microphone."""
    gains = rng.normal(0.0, _COLOUR_DB, len(_COLOUR_CENTRES_HZ))
    octaves = np.log2(np.maximum(_hertz(samples), 1.0))
    return _filtered(samples, 10.0 ** (np.interp(octaves, np.log2(_COLOUR_CENTRES_HZ), gains) / 20.0))


def _reverberate(samples: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A room whose echo is noise that decays exponentially (Polack's model)."""
    decay = rng.uniform(*_REVERBERATION_S)
    time = np.arange(int(decay * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    echo = rng.normal(size=len(time)) * 10.0 ** (-3.0 * time / decay)
    echo *= 10.0 ** (rng.uniform(*_REVERBERANT_DB) / 20.0) / np.linalg.norm(echo)
    echo[0] += 1.0
    size = len(samples) + len(echo)
    reverberant: npt.NDArray[np.float64] = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(echo, size), size)
    return reverberant[: len(samples)]


def _noise(samples: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Stationary noise between white and brown, at a random distance below the speech."""
    slope = rng.uniform(0.0, 1.0)
    coloured = _filtered(rng.normal(size=len(samples)), np.maximum(_hertz(samples), 50.0) ** -slope)
    wanted = np.sqrt(np.mean(samples**2)) * 10.0 ** (-rng.uniform(*_SNR_DB) / 20.0)
    noise: npt.NDArray[np.float64] = coloured * wanted / max(float(np.sqrt(np.mean(coloured**2))), 1e-12)
    return noise


def _band(samples: npt.NDArray[np.float64], low_hz: float, high_hz: float) -> npt.NDArray[np.float64]:
    """A band with slopes of a third of an octave, as line filters have."""
    octaves = np.log2(np.maximum(_hertz(samples), 1.0))
    inside = np.minimum(octaves - np.log2(low_hz), np.log2(high_hz) - octaves)
    return _filtered(samples, np.clip(1.0 + 3.0 * inside, 0.0, 1.0))


def _companded(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Eight-bit mu-law and back."""
    compressed = np.sign(samples) * np.log1p(_MU * np.abs(samples)) / np.log1p(_MU)
    steps = np.round(compressed * 127.0) / 127.0
    expanded: npt.NDArray[np.float64] = np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(_MU)) / _MU
    return expanded
