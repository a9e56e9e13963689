from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, recall_score

from model.labels import CLASSES
from train.metrics import (
    Labels,
    accuracy,
    balanced_macro_f1,
    class_f1,
    class_f1_intervals,
    concordance,
    confusion,
    interval,
    jensen_shannon,
    macro_f1,
    micro_f1,
    paired_difference,
    soft_cross_entropy,
    speaker_bootstrap,
    unweighted_average_recall,
)

guesses = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=60).map(
    lambda rows: (np.array([a for a, _ in rows], np.int64), np.array([b for _, b in rows], np.int64))
)


def noisy(seed: int, clips: int = 200, right: float = 0.6) -> tuple[Labels, Labels]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, clips)
    return truth, np.where(rng.random(clips) < right, truth, rng.integers(0, 4, clips))


@settings(deadline=None)
@given(guesses)
def test_scores_are_those_of_scikit_learn(rows: tuple[Labels, Labels]) -> None:
    truth, guess = rows
    occurring = np.unique(truth)
    shared = {"labels": occurring, "zero_division": 0}
    assert macro_f1(truth, guess) == pytest.approx(f1_score(truth, guess, average="macro", **shared))
    assert unweighted_average_recall(truth, guess) == pytest.approx(
        recall_score(truth, guess, average="macro", **shared)
    )
    assert accuracy(truth, guess) == pytest.approx(accuracy_score(truth, guess))
    assert list(class_f1(truth, guess)) == [CLASSES[index] for index in occurring]
    assert list(class_f1(truth, guess).values()) == pytest.approx(list(f1_score(truth, guess, average=None, **shared)))
    np.testing.assert_array_equal(confusion(truth, guess), confusion_matrix(truth, guess, labels=range(8)))


@settings(deadline=None)
@given(guesses)
def test_micro_f1_is_that_of_scikit_learn_and_accuracy(rows: tuple[Labels, Labels]) -> None:
    truth, guess = rows
    assert micro_f1(truth, guess) == pytest.approx(f1_score(truth, guess, average="micro"))
    assert micro_f1(truth, guess) == pytest.approx(accuracy(truth, guess))


ratings = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed).uniform(1, 7, (2, 40)))


@settings(deadline=None)
@given(ratings, st.floats(-3.0, 3.0), st.floats(0.2, 5.0))
def test_concordance_falls_with_bias_and_scale_where_correlation_does_not(
    rows: npt.NDArray[np.float64], bias: float, scale: float
) -> None:
    truth, guess = rows
    assert concordance(truth, truth) == pytest.approx(1.0)
    assert concordance(truth, guess) == pytest.approx(concordance(guess, truth))
    assert concordance(scale * truth + bias, scale * guess + bias) == pytest.approx(concordance(truth, guess))
    gap = (truth.mean() - (truth + bias).mean()) ** 2
    assert concordance(truth, truth + bias) == pytest.approx(2 * truth.var() / (2 * truth.var() + gap))
    correlation = abs(float(np.corrcoef(truth, guess)[0, 1]))
    assert abs(concordance(truth, guess)) <= correlation + 1e-9


def test_concordance_leaves_out_what_was_not_rated() -> None:
    truth, guess = np.array([1.0, np.nan, 3.0, 5.0, np.nan]), np.array([1.5, 7.0, 2.0, 6.0, 1.0])
    rated = [0, 2, 3]
    assert concordance(truth, guess) == pytest.approx(concordance(truth[rated], guess[rated]))
    assert np.isnan(concordance(truth[:2], guess[:2]))
    assert concordance(np.full(3, 2.0), np.full(3, 2.0)) == 1.0
    assert concordance(np.full(3, 2.0), np.full(3, 4.0)) == 0.0


def test_class_intervals_are_those_of_each_class_alone() -> None:
    truth, guess = noisy(7)
    speakers = [f"s{row % 12}" for row in range(len(truth))]
    found = class_f1_intervals(truth, guess, speakers)
    assert list(found) == list(class_f1(truth, guess))
    for name, estimate in found.items():
        alone = speaker_bootstrap(speakers, lambda rows, n=name: class_f1(truth[rows], guess[rows])[n])  # type: ignore[misc]
        assert estimate == alone


def test_an_interval_of_a_class_that_one_speaker_has_leaves_out_draws_without_it() -> None:
    truth, guess = np.array([0, 0, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 0, 1])
    found = class_f1_intervals(truth, guess, list("aabbcc"))
    assert 0.0 < found["angry"].low <= found["angry"].value <= found["angry"].high <= 1.0


def test_draws_without_a_statistic_do_not_count() -> None:
    def statistic(rows: Labels) -> float:
        return float("nan") if 0 in rows else float(len(rows))

    found = speaker_bootstrap(list("abc"), statistic)
    assert (found.low, found.high) == (3.0, 3.0)
    nothing = speaker_bootstrap(["a"], statistic)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_soft_cross_entropy_of_hard_targets_is_the_log_loss() -> None:
    truth, _ = noisy(1)
    posterior = np.random.default_rng(1).dirichlet(np.ones(8), len(truth))
    expected = log_loss(truth, posterior, labels=range(8))
    assert soft_cross_entropy(np.eye(8)[truth], posterior) == pytest.approx(expected)


def test_soft_cross_entropy_is_least_at_the_votes() -> None:
    votes = np.random.default_rng(2).dirichlet(np.ones(8), 20)
    least = soft_cross_entropy(votes, votes)
    assert least == pytest.approx(float(-(votes * np.log(votes)).sum(axis=1).mean()))
    assert soft_cross_entropy(votes, np.full_like(votes, 1 / 8)) > least


def test_jensen_shannon_distance() -> None:
    one, other = np.eye(8)[[0]], np.eye(8)[[3]]
    half = (one + other) / 2
    assert jensen_shannon(one, one) == 0.0
    assert jensen_shannon(one, other) == pytest.approx(1.0)
    assert jensen_shannon(one, half) == pytest.approx((0.5 * np.log2(4 / 3) + 0.25 * np.log2(2 / 3) + 0.25) ** 0.5)
    assert jensen_shannon(one, half) == pytest.approx(jensen_shannon(half, one))


def test_the_bootstrap_draws_whole_speakers() -> None:
    speakers = ["a"] * 5 + ["b"] * 2 + ["c"] * 3
    drawn: list[Labels] = []

    def statistic(rows: Labels) -> float:
        drawn.append(rows)
        return 0.0

    speaker_bootstrap(speakers, statistic)
    sizes = {"a": 5, "b": 2, "c": 3}
    for rows in drawn:
        counts = np.bincount(rows, minlength=10)
        for name, size in sizes.items():
            own = {int(counts[row]) for row in range(10) if speakers[row] == name}
            assert len(own) == 1, f"{name}'s {size} clips were torn apart"
    assert len({tuple(sorted(rows)) for rows in drawn}) > 8
    assert drawn[-1].tolist() == list(range(10))  # the value itself: every clip once


def test_an_interval_covers_clips_of_one_speaker_as_one() -> None:
    """Fifty copies of four speakers' clips tell no more than the four: the interval stays as wide."""
    truth = np.zeros(4, np.int64)
    guess = np.array([0, 0, 1, 1])
    few = interval(accuracy, truth, guess, list("abcd"))
    many = interval(accuracy, truth.repeat(50), guess.repeat(50), list("a" * 50 + "b" * 50 + "c" * 50 + "d" * 50))
    assert (few.value, few.low, few.high) == (many.value, many.low, many.high)
    assert (few.value, few.low, few.high) == (0.5, 0.0, 1.0)


def test_one_speaker_has_no_spread() -> None:
    truth, guess = noisy(3, 30)
    found = interval(macro_f1, truth, guess, ["a"] * 30)
    assert found.low == found.high == found.value == macro_f1(truth, guess)


@pytest.mark.parametrize("metric", [accuracy, unweighted_average_recall, macro_f1])
def test_a_paired_difference_compares_the_same_clips(metric: Callable[[Labels, Labels], float]) -> None:
    truth, worse = noisy(4)
    better = worse.copy()
    wrong = np.flatnonzero(worse != truth)[::4]
    better[wrong] = truth[wrong]
    speakers = [f"s{row % 20}" for row in range(len(truth))]
    gain = paired_difference(metric, truth, better, worse, speakers)
    assert gain.value == pytest.approx(metric(truth, better) - metric(truth, worse))
    assert 0.0 < gain.low <= gain.value <= gain.high
    loss = paired_difference(metric, truth, worse, better, speakers)
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    alone = interval(metric, truth, better, speakers)
    assert gain.high - gain.low < alone.high - alone.low
    none = paired_difference(metric, truth, better, better, speakers)
    assert (none.value, none.low, none.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_selection_metric_does_not_depend_on_class_frequencies(seed: int) -> None:
    truth, guess = noisy(seed, 80)
    often = np.concatenate([np.arange(80), np.repeat(np.flatnonzero(truth == 0), 3)])
    plain = balanced_macro_f1(truth, guess, 200, seed=0)
    assert balanced_macro_f1(truth[often], guess[often], 200, seed=1) == pytest.approx(plain, abs=0.03)


def test_always_guessing_the_frequent_class_does_not_pay() -> None:
    truth, guess = np.repeat([0, 1], [90, 10]), np.zeros(100, np.int64)
    assert balanced_macro_f1(truth, guess, 5, seed=0) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(truth, guess) > 0.47


def test_the_selection_metric_repeats() -> None:
    truth, guess = noisy(5, 150)
    assert balanced_macro_f1(truth, guess, 10, seed=0) == balanced_macro_f1(truth, guess, 10, seed=0)
    assert balanced_macro_f1(truth, truth, 10, seed=0) == 1.0
