import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.adaptation import FULL_WEIGHT, Adaptation, History
from model.features import Frames

SHAPE = (3, 5)


def frames(seed: int, around: float = 0.0) -> Frames:
    return (np.random.default_rng(seed).standard_normal(SHAPE) + around).astype(np.float32)


def adaptation(strength: float = 2.0) -> Adaptation:
    return Adaptation(np.zeros(SHAPE, np.float32), strength)


def after(seeds: list[int], adapted: Adaptation, around: float = 0.0, samples: int = FULL_WEIGHT) -> History:
    history = History()
    for seed in seeds:
        history = adapted.heard(history, frames(seed, around), samples)
    return history


def test_the_first_utterance_is_taken_as_it_is() -> None:
    assert adaptation().adapted(frames(0), History()) is not None
    np.testing.assert_array_equal(adaptation().adapted(frames(0), History()), frames(0))


def test_what_a_channel_has_in_common_is_taken_out_in_the_end() -> None:
    known = after(list(range(400)), adaptation(), around=7.0)
    assert abs(adaptation().adapted(frames(1000, around=7.0), known).mean()) < 0.6
    few = after([0, 1], adaptation(), around=7.0)
    assert 2.5 < adaptation().adapted(frames(1000, around=7.0), few).mean() < 4.5  # half of it: two against two


def test_the_shift_is_the_shrunken_mean() -> None:
    reference, strength = frames(9), 3.0
    adapted = Adaptation(reference, strength)
    history = adapted.heard(adapted.heard(History(), frames(1), FULL_WEIGHT), frames(2), FULL_WEIGHT // 2)
    shift = (frames(1) - reference + 0.5 * (frames(2) - reference)) / (1.5 + strength)
    np.testing.assert_allclose(adapted.adapted(frames(3), history), frames(3) - shift, atol=1e-6)


@given(st.permutations([0, 1, 2, 3, 4]))
def test_the_order_of_what_was_heard_does_not_count(order: list[int]) -> None:
    one, other = after([0, 1, 2, 3, 4], adaptation()), after(order, adaptation())
    np.testing.assert_allclose(adaptation().adapted(frames(9), one), adaptation().adapted(frames(9), other), atol=1e-6)


def test_a_short_utterance_says_less() -> None:
    short = after([0], adaptation(), samples=FULL_WEIGHT // 4)
    assert short.weight == 0.25
    assert after([0], adaptation(), samples=10 * FULL_WEIGHT).weight == 1.0


def test_a_history_is_never_changed() -> None:
    first = after([0], adaptation())
    assert first.deviation is not None
    before = first.deviation.copy()
    adaptation().heard(first, frames(1), FULL_WEIGHT)
    np.testing.assert_array_equal(first.deviation, before)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_a_strength_is_above_zero(strength: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        adaptation(strength)


def test_a_reference_is_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        Adaptation(np.full(SHAPE, np.nan, np.float32), 1.0)


def test_other_functionals_than_in_training_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 5\] as in training, got \[3, 4\]"):
        adaptation().adapted(np.zeros((3, 4), np.float32), History())
    with pytest.raises(ValueError, match="as in training"):
        adaptation().heard(History(), np.zeros((1, 5), np.float32), FULL_WEIGHT)
