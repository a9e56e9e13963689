import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.audio import MEL_HOP, SAMPLE_RATE_HZ, Samples, frame_count
from model.features import (
    FUNCTIONALS_STEPS,
    PROSODY_DIM,
    Frames,
    collate,
    functionals,
    functionals_dim,
    prosody_frames,
    standardise,
)
from tests.fakes import silence, voice

PITCH, VOICING, LOUDNESS, SLOPE = range(PROSODY_DIM)


def tone(hz: float, seconds: float = 1.0) -> Samples:
    """A buzz with five harmonics, as a voice has."""
    t = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    wave = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 6))
    return (0.2 * np.asarray(wave)).astype(np.float32)


def random_frames(count: int, width: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("hz", [80.0, 120.0, 160.0, 240.0, 400.0])
def test_pitch_is_in_octaves_around_160_hz(hz: float) -> None:
    frames = prosody_frames(tone(hz))[5:-5]
    assert np.median(frames[:, PITCH]) == pytest.approx(np.log2(hz / 160.0), abs=0.03)
    assert frames[:, VOICING].min() > 0.8


def test_noise_has_no_pitch() -> None:
    noise = np.random.default_rng(1).standard_normal(SAMPLE_RATE_HZ).astype(np.float32) * 0.1
    frames = prosody_frames(noise)
    assert (frames[:, VOICING] < 0.5).mean() > 0.9
    assert (frames[:, PITCH] == 0.0).mean() > 0.9


@given(st.integers(1, 20_000))
def test_there_is_a_frame_for_every_ten_milliseconds_begun(samples: int) -> None:
    assert prosody_frames(np.ones(samples, np.float32)).shape == (frame_count(samples, MEL_HOP), PROSODY_DIM)


@pytest.mark.parametrize("gain", [0.003, 0.1, 3.0])
def test_the_recording_level_does_not_count(gain: float) -> None:
    speech = voice(1.0)
    np.testing.assert_allclose(prosody_frames(speech * np.float32(gain)), prosody_frames(speech), atol=1e-3)


def test_loudness_follows_the_speech() -> None:
    frames = prosody_frames(np.concatenate([silence(0.5), voice(1.0), silence(0.5)]))
    assert frames[70:130, LOUDNESS].mean() > frames[:40, LOUDNESS].mean() + 3.0
    assert frames[45:60, SLOPE].max() > 0.5


@pytest.mark.parametrize("bad", [np.zeros(0, np.float32), np.zeros((2, 400), np.float32)])
def test_prosody_needs_one_channel_with_samples(bad: Samples) -> None:
    with pytest.raises(ValueError, match="one channel with at least one sample"):
        prosody_frames(bad)


def test_a_value_that_is_not_finite_is_never_a_feature() -> None:
    broken = voice(0.5).copy()
    broken[100] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        prosody_frames(broken)


def test_functionals_are_those_of_the_whole_and_of_each_half() -> None:
    whisper, prosody = random_frames(10, 6), random_frames(20, PROSODY_DIM)
    steps = functionals(whisper, prosody)
    assert steps.shape == (FUNCTIONALS_STEPS, functionals_dim(6))
    for step, begin, end in ((0, 0, 10), (1, 0, 5), (2, 5, 10)):
        speech, spoken = whisper[begin:end], prosody[2 * begin : 2 * end, :2]
        expected = np.concatenate([speech.mean(0), speech.std(0), spoken.mean(0), spoken.std(0)])
        np.testing.assert_allclose(steps[step], expected, rtol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40))
def test_functionals_of_any_lengths_are_finite(whisper: int, prosody: int) -> None:
    steps = functionals(random_frames(whisper, 3), random_frames(prosody, PROSODY_DIM))
    assert steps.shape == (FUNCTIONALS_STEPS, functionals_dim(3))
    assert np.isfinite(steps).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_collate_pads_on_the_right_to_a_multiple(lengths: list[int], multiple: int) -> None:
    rows = [random_frames(length, 2, seed) for seed, length in enumerate(lengths)]
    batch, mask = collate(rows, multiple)
    assert batch.shape[1] % multiple == 0
    assert batch.shape[1] >= max(1, *lengths, multiple)
    assert mask.sum(axis=1).tolist() == lengths
    for row, values in enumerate(rows):
        np.testing.assert_array_equal(batch[row, : len(values)], values)
        assert not batch[row, len(values) :].any()


def test_collate_refuses_frames_of_different_widths() -> None:
    with pytest.raises(ValueError, match=r"exactly one width, got \[2, 3\]"):
        collate([random_frames(1, 2), random_frames(1, 3)], 1)


def test_standardised_audio_has_mean_0_and_variance_1_and_silence_stays_silent() -> None:
    rng = np.random.default_rng(0)
    audio = (0.2 + 0.01 * rng.standard_normal(4000)).astype(np.float32)
    found = standardise(audio)
    assert found.dtype == np.float32
    assert abs(float(found.mean())) < 1e-5
    assert float(found.std()) == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(standardise(np.float32(0.5) * audio), found, atol=0.01)
    assert not standardise(np.full(400, 0.25, np.float32)).any()
    with pytest.raises(ValueError, match="got 0"):
        standardise(np.zeros(0, np.float32))
