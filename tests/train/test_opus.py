import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio import SAMPLE_RATE_HZ, Samples
from tests.fakes import silence, voice
from train.opus import through_opus


def hiss(samples: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples).astype(np.float32)


def power(samples: Samples, low_hz: float, high_hz: float) -> float:
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    return float(spectrum[(hertz >= low_hz) & (hertz < high_hz)].sum())


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5000), st.floats(6.0, 128.0))
def test_any_length_comes_back_whole(length: int, kbit_s: float) -> None:
    found = through_opus(hiss(length), kbit_s)
    assert found.shape == (length,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kbit_s", [8, 12, 16, 24])
def test_nothing_moves_in_time(kbit_s: int) -> None:
    """The encoder looks ahead and the decoder takes that away: where the two agree best, they are in step."""
    speech = voice(1.0)
    sent, heard = (np.fft.rfft(part, 2 * len(speech)) for part in (speech, through_opus(speech, kbit_s)))
    agreement = np.fft.irfft(np.conj(sent) * heard)
    lag = int(np.argmax(agreement))
    assert min(lag, len(agreement) - lag) <= 2


def test_the_lowest_rate_keeps_the_band_of_a_telephone() -> None:
    noise = hiss(SAMPLE_RATE_HZ)
    narrow, wide = through_opus(noise, 8), through_opus(noise, 24)
    before = power(noise, 5000, 8000)
    assert power(narrow, 5000, 8000) < 1e-4 * before
    assert power(wide, 5000, 8000) > 0.1 * before
    assert power(narrow, 300, 3400) > 0.5 * power(noise, 300, 3400)


def test_more_bits_are_nearer_to_the_original() -> None:
    speech = voice(1.0)
    errors = [float(np.square(through_opus(speech, kbit_s) - speech).mean()) for kbit_s in (8, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_it_is_the_same_every_time() -> None:
    np.testing.assert_array_equal(through_opus(voice(0.5), 12), through_opus(voice(0.5), 12))


def test_silence_stays_silent() -> None:
    assert np.abs(through_opus(silence(0.3), 8)).max() < 1e-3


def test_a_rate_that_opus_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="between 6 and 128 kbit/s, got 2"):
        through_opus(hiss(100), 2)
