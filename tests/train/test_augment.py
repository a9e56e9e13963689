import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio import SAMPLE_RATE_HZ, Samples
from tests.fakes import silence, voice
from train.augment import degrade

SEEDS = range(40)


def degraded(samples: Samples, seed: int) -> Samples:
    return degrade(samples, np.random.default_rng(seed))


def power(samples: Samples, low_hz: float, high_hz: float) -> float:
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    return float(spectrum[(hertz >= low_hz) & (hertz < high_hz)].sum())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9000), st.floats(0.0, 1.0, width=32), st.integers(0, 10_000))
def test_any_recording_stays_a_recording(length: int, level: float, seed: int) -> None:
    noise = np.random.default_rng(length).uniform(-1.0, 1.0, length)
    found = degraded((noise * level).astype(np.float32), seed)
    assert found.dtype == np.float32
    assert found.shape == (length,)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1.0


def test_a_seed_decides_the_copy() -> None:
    speech = voice(0.5)
    copies = [degraded(speech, seed) for seed in SEEDS]
    for seed, copy in zip(SEEDS, copies, strict=True):
        np.testing.assert_array_equal(copy, degraded(speech, seed))
    assert len({copy.tobytes() for copy in copies}) == len(copies)


def test_one_generator_gives_another_copy_each_time() -> None:
    rng = np.random.default_rng(0)
    assert not np.array_equal(degrade(voice(0.5), rng), degrade(voice(0.5), rng))


def test_the_input_is_left_alone() -> None:
    speech = voice(0.5)
    before = speech.copy()
    for seed in SEEDS:
        assert not np.shares_memory(degraded(speech, seed), speech)
    np.testing.assert_array_equal(speech, before)


def test_silence_stays_silent() -> None:
    for seed in SEEDS:
        assert not degraded(silence(0.2), seed).any()


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        degraded(np.zeros(0, np.float32), 0)


def test_levels_spread_over_thirty_decibels() -> None:
    peaks = 20 * np.log10([np.abs(degraded(voice(0.5), seed)).max() for seed in SEEDS])
    assert -31.0 < peaks.min() < -24.0
    assert -6.0 < peaks.max() <= 0.0


def test_the_words_stay_where_they_are() -> None:
    """Loudness over time still follows the speech: nothing moves, nothing is cut away."""
    speech = np.concatenate([silence(0.4), voice(0.6), silence(0.4)])
    blocks = np.square(speech).reshape(-1, 800).mean(axis=1)
    for seed in SEEDS:
        loudness = np.square(degraded(speech, seed)).reshape(-1, 800).mean(axis=1)
        assert np.corrcoef(np.sqrt(blocks), np.sqrt(loudness))[0, 1] > 0.5, f"seed {seed}"


def test_some_copies_go_through_a_telephone_and_most_do_not() -> None:
    """Companding adds a little above the line's 3400 Hz; other microphones and rooms keep far more."""
    hiss = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    copies = [degraded(hiss, seed) for seed in range(100)]
    narrow = [power(copy, 4600, 8000) < 0.01 * power(copy, 300, 3400) for copy in copies]
    assert 20 <= sum(narrow) <= 50


def test_copies_sound_different_from_each_other() -> None:
    """The balance of low and high frequencies differs, as between microphones."""
    tilt = [10 * np.log10(power(c, 2000, 3400) / power(c, 300, 1000)) for c in (degraded(voice(0.5), s) for s in SEEDS)]
    assert np.std(tilt) > 4.0
