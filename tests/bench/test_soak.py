import numpy as np
import pytest

from bench.soak import growth, settled


def test_growth_is_the_slope_with_an_interval_that_holds_it() -> None:
    hours = np.linspace(0.0, 1.0, 40)
    values = 300 + 12 * hours + np.random.default_rng(1).normal(0, 0.5, len(hours))
    found, low, high = growth(hours, values)
    assert found == pytest.approx(12, abs=1)
    assert low < 12 < high
    assert high - low < 3
    values[7] += 400  # one far sample moves the middle of all slopes hardly
    assert growth(hours, values)[0] == pytest.approx(12, abs=1)


def test_no_growth_follows_from_two_samples() -> None:
    with pytest.raises(ValueError, match="growth of 2 samples"):
        growth(np.array([0.1, 0.2]), np.array([1.0, 2.0]))


def test_the_warm_up_is_left_out() -> None:
    rows = [{"at_s": float(at), "memory": float(at)} for at in range(0, 3601, 360)]
    hours, values = settled(rows, "memory")
    assert hours[0] == pytest.approx(0.3)
    assert values[0] == 1080
