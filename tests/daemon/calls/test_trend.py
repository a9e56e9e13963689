"""Slopes and turning points: found where they are, and nowhere else."""

import numpy as np
import pytest

from daemon.calls.said import Said
from daemon.calls.trend import LEAST_FOR_SLOPE, student_t975, trend, turning_points
from tests.daemon.calls.build import make_said


def steady(top: str, count: int, start_s: float = 0.0, **more: float) -> list[Said]:
    """Utterances of three seconds, one every five."""
    return [make_said(start_s + 5 * n, start_s + 5 * n + 3, top, **more) for n in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("freedom", "tabled"), [(3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)]
)
def test_the_t_quantile(freedom: int, tabled: float) -> None:
    assert student_t975(freedom) == pytest.approx(tabled, rel=0.01)


def test_a_slope_is_that_of_least_squares() -> None:
    values = [4.0, 4.5, 3.0, 2.5, 2.75, 1.5, 2.0]
    said = [make_said(10 * n, 10 * n + 2, valence=value) for n, value in enumerate(values)]
    found = trend(said, "valence")
    assert found is not None
    assert found.slope is not None
    assert found.low is not None
    assert found.high is not None
    fit, covariance = np.polyfit([(10 * n + 1) / 60 for n in range(len(values))], values, 1, cov=True)
    half = 2.571 * covariance[0, 0] ** 0.5
    assert found.slope == pytest.approx(fit[0])
    assert (found.low, found.high) == pytest.approx((fit[0] - half, fit[0] + half), rel=0.02)
    assert found.mean == pytest.approx(np.mean(values))


def test_few_utterances_have_a_mean_and_no_slope() -> None:
    found = trend(steady("sad", LEAST_FOR_SLOPE - 1), "negativity")
    assert found is not None
    assert found.slope is None
    assert found.mean > 0.7


def test_what_the_bundle_does_not_know_has_no_trend() -> None:
    assert trend(steady("sad", 9), "valence") is None
    assert trend([], "negativity") is None


def test_a_mood_that_turns_and_stays_is_one_turning_point() -> None:
    said = steady("neutral", 10, confidence=0.95) + steady("angry", 10, 50.0, confidence=0.9)
    (point,) = turning_points(said)
    assert (point.at_ms, point.before, point.after) == (50_000, "neutral", "angry")
    assert point.measure == "negativity"
    assert point.change > 0.5
    assert point.strength >= 1


def test_there_and_back_are_two() -> None:
    said = steady("neutral", 12) + steady("angry", 12, 60.0) + steady("happy", 12, 120.0)
    assert [(point.at_ms, point.after) for point in turning_points(said)] == [(60_000, "angry"), (120_000, "happy")]


def test_valence_is_the_measure_where_it_is_known() -> None:
    said = steady("neutral", 8, valence=5.0) + steady("neutral", 8, 40.0, valence=3.5)
    (point,) = turning_points(said)
    assert (point.measure, point.change, point.before, point.after) == ("valence", -1.5, "neutral", "neutral")


@pytest.mark.parametrize(
    "said",
    [
        [],
        steady("angry", 1),
        steady("angry", 30),
        [*steady("neutral", 10), make_said(50, 51, "angry"), *steady("neutral", 10, 55.0)],
        [*steady("neutral", 10), make_said(50, 55, "angry")],
    ],
    ids=["nothing", "one utterance", "the same all along", "a word that passes", "no more than one utterance"],
)
def test_what_does_not_last_is_no_turning_point(said: list[Said]) -> None:
    assert turning_points(said) == []
