"""Other rooms, microphones and lines: what a clip might have sounded like elsewhere.

A corpus is recorded in one room with one microphone, so features learn that room too. A degraded copy keeps the words and
the voice and changes the channel: the colour of microphone and room, reverberation, noise, an overdriven microphone, a
telephone's band, Opus, the companding of a telephone's codec, the level. `AugmentConfig` switches each.

Shapes: T = samples.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE_HZ, Samples
from train.augment_config import AugmentConfig, NoiseColour
from train.opus import through_opus
from train.room import convolved, room_response

DEFAULT: Final = AugmentConfig()
_COLOUR_CENTRES_HZ: Final = 62.5 * 2.0 ** np.arange(8)
_REVERBERATION_S: Final = (0.1, 0.7)
"""Range of the time in which a room's echo falls by 60 dB."""
_REVERBERANT_DB: Final = (-12.0, 3.0)
"""Range of reverberant over direct energy."""
_SLOPES: Final[dict[NoiseColour, float]] = {"violet": -1.0, "blue": -0.5, "white": 0.0, "pink": 0.5, "brown": 1.0}
"""Exponents by which the amplitude falls with frequency."""
_OPUS_PEAK: Final = 0.7
"""What a sender leaves free below full scale, beyond which the encoder would clip."""
_TELEPHONE_HZ: Final = (300.0, 3400.0)
_MU: Final = 255.0
"""Companding constant of G.711 mu-law."""


def degrade(samples: Samples, rng: np.random.Generator, config: AugmentConfig = DEFAULT) -> Samples:
    """One random recording of the same speech, `float32 [T]` with |x| <= 1 as its input.

    A switch that is off draws no random number, unless it is one of those that version 1 of the rules had.

    Raises:
        ValueError: if there is no sample.
    """
    if not len(samples):
        raise ValueError("a recording to degrade has at least one sample, got 0")
    degraded = _colour(samples.astype(np.float64), config.colour_db, rng)
    if rng.random() < config.echo:
        degraded = _reverberate(degraded, rng)
    if config.room and rng.random() < config.room:
        degraded = convolved(degraded, room_response(rng.uniform(*config.room_rt60_s), rng))
    if rng.random() < config.noise:
        degraded = degraded + _noise(degraded, config, rng)
    if config.clipping and rng.random() < config.clipping:
        degraded = _scaled(degraded, 10.0 ** (rng.uniform(*config.overdrive_db) / 20.0)).clip(-1.0, 1.0)
    telephone = rng.random() < config.telephone
    if telephone:
        degraded = _band(degraded, *_TELEPHONE_HZ)
    if config.opus and rng.random() < config.opus:
        sent = _scaled(degraded, _OPUS_PEAK).astype(np.float32)
        degraded = through_opus(sent, rng.uniform(*config.opus_kbit_s)).astype(np.float64)
    degraded = _scaled(degraded, 10.0 ** (rng.uniform(*config.level_db) / 20.0))
    if telephone:
        degraded = _companded(degraded)
    return degraded.astype(np.float32)


def _scaled(samples: npt.NDArray[np.float64], peak: float) -> npt.NDArray[np.float64]:
    return samples * (peak / max(float(np.abs(samples).max()), 1e-9))


def _filtered(samples: npt.NDArray[np.float64], response: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    filtered: npt.NDArray[np.float64] = np.fft.irfft(np.fft.rfft(samples) * response, len(samples))
    return filtered


def _hertz(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ), np.float64)


def _colour(samples: npt.NDArray[np.float64], deviation_db: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A smooth random frequency response, as of another microphone."""
    gains = rng.normal(0.0, deviation_db, len(_COLOUR_CENTRES_HZ))
    octaves = np.log2(np.maximum(_hertz(samples), 1.0))
    return _filtered(samples, 10.0 ** (np.interp(octaves, np.log2(_COLOUR_CENTRES_HZ), gains) / 20.0))


def _reverberate(samples: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A room whose echo is noise that decays exponentially (Polack's model)."""
    decay = rng.uniform(*_REVERBERATION_S)
    time = np.arange(int(decay * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    echo = rng.normal(size=len(time)) * 10.0 ** (-3.0 * time / decay)
    echo *= 10.0 ** (rng.uniform(*_REVERBERANT_DB) / 20.0) / np.linalg.norm(echo)
    echo[0] += 1.0
    return convolved(samples, echo)


def _noise(
    samples: npt.NDArray[np.float64], config: AugmentConfig, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Stationary noise of a random colour, at a random distance below the speech."""
    colours = config.noise_colours
    slope = _SLOPES[colours[rng.integers(len(colours))]] if colours else rng.uniform(0.0, 1.0)
    coloured = _filtered(rng.normal(size=len(samples)), np.maximum(_hertz(samples), 50.0) ** -slope)
    wanted = np.sqrt(np.mean(samples**2)) * 10.0 ** (-rng.uniform(*config.snr_db) / 20.0)
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
