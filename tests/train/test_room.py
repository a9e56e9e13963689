import numpy as np
import numpy.typing as npt
import pytest

from model.audio import SAMPLE_RATE_HZ
from train.room import convolved, room_response

SEEDS = range(6)


def reverberation_time(response: npt.NDArray[np.float64]) -> float:
    """Seconds for 60 dB, from the slope between 10 and 30 dB below the whole energy.

    Source: Schroeder (1965), "New Method of Measuring Reverberation Time", JASA 37(3): backward integration.
    """
    energy = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2))
    first, last = (int(np.argmax(energy < level)) for level in (-10.0, -30.0))
    slope = np.polyfit(np.arange(first, last) / SAMPLE_RATE_HZ, energy[first:last], 1)[0]
    return float(-60.0 / slope)


@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 1.0])
def test_sound_dies_away_in_the_asked_time(rt60_s: float) -> None:
    measured = [reverberation_time(room_response(rt60_s, np.random.default_rng(seed))) for seed in SEEDS]
    assert np.median(measured) == pytest.approx(rt60_s, rel=0.15)
    assert np.std(measured) < 0.15 * rt60_s


def test_the_direct_sound_comes_first_then_single_walls() -> None:
    """Eight of the first 800 samples hold a good part of the energy; of noise alone it would be a fifth."""
    shares = []
    for seed in SEEDS:
        response = room_response(0.6, np.random.default_rng(seed))
        assert response[0] == 1.0
        early = np.sort(np.square(response[1 : SAMPLE_RATE_HZ // 20]))
        shares.append(early[-8:].sum() / early.sum())
    assert np.median(shares) > 0.35


def test_reflected_energy_reaches_and_exceeds_the_direct_one() -> None:
    ratios = [-10 * np.log10(np.sum(room_response(0.6, np.random.default_rng(seed))[1:] ** 2)) for seed in range(40)]
    assert -6.01 <= min(ratios) < -4.0
    assert 4.0 < max(ratios) <= 6.01


def test_a_seed_decides_the_room() -> None:
    first, again, other = (room_response(0.3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_click_in_the_room_is_the_response() -> None:
    response, click = room_response(0.2, np.random.default_rng(0)), np.zeros(900)
    click[100] = 0.5
    np.testing.assert_allclose(convolved(click, response)[100:], 0.5 * response[:800], atol=1e-12)
    np.testing.assert_allclose(convolved(click, response)[:100], 0.0, atol=1e-12)


def test_a_room_without_time_is_refused() -> None:
    with pytest.raises(ValueError, match="a reverberation time is positive, got 0 s"):
        room_response(0.0, np.random.default_rng(0))
