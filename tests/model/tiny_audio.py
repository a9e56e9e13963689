"""Audio that speech encoders are compared on, and by what."""

import numpy as np

from model.audio import Samples


def waves(*lengths: int) -> list[Samples]:
    """Noise of these samples around an offset, so that a mean that is taken over padding would be another one."""
    return _noise(lengths, offset=0.3, seed=1)


def noise(*lengths: int) -> list[Samples]:
    """Other noise, nearly around zero as recordings are."""
    return _noise(lengths, offset=0.05, seed=5)


def relative(found: object, expected: object) -> float:
    """Norm of the difference of two arrays of one shape, over that of the expected one."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _noise(lengths: tuple[int, ...], offset: float, seed: int) -> list[Samples]:
    rng = np.random.default_rng(seed)
    return [(offset + 0.1 * rng.standard_normal(length)).astype(np.float32) for length in lengths]
