"""Each switch of `[augment]`: what it does, and that it changes nothing where it is off."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.audio import SAMPLE_RATE_HZ, Samples
from tests.fakes import voice
from tests.train.synthetic import RECIPES
from tests.train.test_opus import power
from train.augment import degrade
from train.augment_config import AugmentConfig
from train.config import load_recipe

OFF: dict[str, Any] = {"colour_db": 0.0, "echo": 0.0, "noise": 0.0, "telephone": 0.0, "level_db": (0.0, 0.0)}
SWITCHES: list[dict[str, Any]] = [
    {"room": 1.0},
    {"opus": 1.0},
    {"clipping": 1.0},
    {"noise": 1.0, "noise_colours": ("violet", "blue", "pink")},
    {"level_db": (-60.0, -50.0)},
    {"room": 0.5, "opus": 0.5, "clipping": 0.5, "telephone": 0.5, "noise": 0.5, "noise_colours": ("white",)},
]
SEEDS = range(20)
PINNED = [27.79, 83.451, 1112.24, 893.592, 298.523, 953.876]
"""Sum of the absolute samples of the first six copies, as version 1 of the rules drew them."""


def only(seed: int = 0, speech: Samples | None = None, **switches: Any) -> Samples:
    """A copy that went through nothing but `switches`."""
    config = AugmentConfig(**(OFF | switches))
    return degrade(voice(0.5) if speech is None else speech, np.random.default_rng(seed), config)


def hiss() -> Samples:
    return np.random.default_rng(0).uniform(-0.3, 0.3, SAMPLE_RATE_HZ).astype(np.float32)


def test_version_1_still_draws_the_same_copies() -> None:
    """Cached copies are named by the version: these figures may change only together with it."""
    shipped = load_recipe(RECIPES / "default.toml").augment
    speech = voice(0.5)
    sums = [float(np.abs(degrade(speech, np.random.default_rng(seed), shipped)).sum()) for seed in range(6)]
    assert sums == pytest.approx(PINNED, rel=1e-4)
    assert shipped.copies_name == "1"


def test_another_recording_has_another_name() -> None:
    names = {AugmentConfig(**switches).copies_name for switches in SWITCHES}
    assert len(names) == len(SWITCHES)
    assert all(name.startswith("1-") for name in names)
    assert AugmentConfig(opus=0.0).copies_name == "1", "a switch that is written down and off changes nothing"


def test_words_change_what_is_trained_on_and_no_recording() -> None:
    misheard = AugmentConfig.model_validate({"words": {"errors": 0.2}})
    assert misheard.copies_name == "1"
    assert misheard.content_name != "1"
    assert AugmentConfig.model_validate({"words": {"variants": 9}}).content_name == "1"


@pytest.mark.parametrize("switches", SWITCHES)
@settings(deadline=None, max_examples=8)
@given(length=st.integers(1, 4000), level=st.floats(0.0, 1.0, width=32), seed=st.integers(0, 1000))
def test_any_recording_stays_a_recording(switches: dict[str, Any], length: int, level: float, seed: int) -> None:
    noise = (np.random.default_rng(length).uniform(-1.0, 1.0, length) * level).astype(np.float32)
    found, again = only(seed, noise, **switches), only(seed, noise, **switches)
    assert found.dtype == np.float32
    assert found.shape == (length,)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1.0
    np.testing.assert_array_equal(found, again)


def test_with_everything_off_only_the_level_is_set() -> None:
    speech = voice(0.5)
    np.testing.assert_allclose(only(), speech / np.abs(speech).max(), atol=1e-6)


def test_a_room_fills_the_silence_behind_a_word() -> None:
    word = np.concatenate([voice(0.3), np.zeros(SAMPLE_RATE_HZ // 2, np.float32)])
    short, long = (only(3, word, room=1.0, room_rt60_s=(s, s)) for s in (0.2, 1.0))
    dry, tail = only(3, word), slice(len(word) - 4000, None)
    assert not np.square(dry[tail]).sum() > 1e-9
    assert np.square(long[tail]).sum() > 100 * np.square(short[tail]).sum() > 0


def test_opus_at_its_lowest_rate_takes_what_is_above_its_band() -> None:
    noise = hiss()
    assert power(only(0, noise, opus=1.0, opus_kbit_s=(8, 8)), 5000, 8000) < 1e-3 * power(only(0, noise), 5000, 8000)


def test_an_overdriven_microphone_cuts_the_peaks_off() -> None:
    for seed in SEEDS:
        clipped = only(seed, clipping=1.0, overdrive_db=(6.0, 12.0))
        share = float((np.abs(clipped) > 0.999).mean())
        assert share > 5 * float((np.abs(only(seed)) > 0.999).mean())
        assert share > 0.002


@pytest.mark.parametrize(
    ("colour", "slope_db"), [("violet", 6.0), ("blue", 3.0), ("white", 0.0), ("pink", -3.0), ("brown", -6.0)]
)
def test_noise_has_the_slope_of_its_colour(colour: str, slope_db: float) -> None:
    """Power per hertz rises or falls by this many dB an octave."""
    tone = (0.3 * np.sin(2 * np.pi * 200 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)).astype(np.float32)
    noisy = only(1, tone, noise=1.0, noise_colours=(colour,), snr_db=(0.0, 0.0))
    octaves = [power(noisy, low, 2 * low) / low for low in (500, 1000, 2000, 4000)]
    assert float(np.mean(np.diff(10 * np.log10(octaves)))) == pytest.approx(slope_db, abs=0.6)


def test_gain_is_drawn_from_its_range() -> None:
    peaks = [20 * np.log10(np.abs(only(seed, level_db=(-40.0, -20.0))).max()) for seed in SEEDS]
    assert -40.01 <= min(peaks) < -35.0
    assert -25.0 < max(peaks) <= -19.99


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"opus": 1.5}, "less than or equal to 1"),
        ({"opus_kbit_s": (2, 8)}, "a bit rate in kbit/s lies between 6 and 128, got 2 to 8"),
        ({"room_rt60_s": (1.0, 0.2)}, "from the lesser to the greater, got 1 to 0.2"),
        ({"level_db": (-10, 3)}, "a peak in dB of full scale lies between -90 and 0"),
        ({"noise_colours": ("grey",)}, "'violet', 'blue', 'white', 'pink' or 'brown'"),
        ({"babble": 0.5}, "Extra inputs are not permitted"),
        ({"words": {"errors": 0.7, "empty": 0.7}}, "errors and empty exclude each other"),
        ({"words": {"deletion": 0.7, "substitution": 0.7}}, "deletion and substitution exclude each other"),
    ],
)
def test_a_switch_that_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AugmentConfig.model_validate(wrong)
