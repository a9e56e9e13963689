"""Rooms: synthetic impulse responses with early reflections and a reverberant tail.

Source: Moorer (1979), "About this Reverberation Business", Computer Music Journal 3(2): echoes of the nearest walls one by
one, then noise that decays exponentially (Polack's model). The decay is the same at all frequencies.

Shapes: T = samples, R = samples of the response.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE_HZ

_REFLECTIONS: Final = 8
_EARLY_S: Final = (0.002, 0.05)
"""When reflections of single walls arrive."""
_DIRECT_DB: Final = (-6.0, 6.0)
"""Range of direct over all reflected energy: from the far end of a room to a table's width away."""
_LENGTH: Final = 1.2
"""Length of the response in reverberation times: it ends 72 dB down."""


def room_response(rt60_s: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """An impulse response `float64 [R]` that starts with the direct sound, 1 at sample 0.

    Args:
        rt60_s: seconds in which the reflected energy falls by 60 dB.
        rng: decides the walls and the distance.

    Raises:
        ValueError: if the time is not positive.
    """
    if rt60_s <= 0:
        raise ValueError(f"a reverberation time is positive, got {rt60_s:g} s")
    time = np.arange(max(2, int(_LENGTH * rt60_s * SAMPLE_RATE_HZ))) / SAMPLE_RATE_HZ
    decay = 10.0 ** (-3.0 * time / rt60_s)
    tail = rng.normal(size=len(time)) * decay
    tail *= np.clip(time / _EARLY_S[1], 0.0, 1.0)  # single walls first, then all of them together
    walls = np.minimum((rng.uniform(*_EARLY_S, _REFLECTIONS) * SAMPLE_RATE_HZ).astype(np.int64), len(time) - 1)
    np.add.at(tail, walls, rng.uniform(3.0, 8.0, _REFLECTIONS) * rng.choice([-1.0, 1.0], _REFLECTIONS) * decay[walls])
    tail[0] = 0.0
    response: npt.NDArray[np.float64] = tail * 10.0 ** (-rng.uniform(*_DIRECT_DB) / 20.0) / np.linalg.norm(tail)
    response[0] = 1.0
    return response


def convolved(samples: npt.NDArray[np.float64], response: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What `samples [T]` sound like behind `response [R]`, as long as before."""
    size = len(samples) + len(response)
    whole: npt.NDArray[np.float64] = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return whole[: len(samples)]
