import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from model.posteriors import disagreement
from tests.train.results import COLUMNS, random_posteriors
from train.calibration import (
    calibration_error,
    correct_prior,
    disagreements,
    error_auroc,
    fit_prior_ratio,
    log_losses,
    reliability,
    risk_coverage,
    soft_losses,
)
from train.metrics import soft_cross_entropy

seeds = st.integers(0, 10_000)
ratios = st.lists(st.floats(0.05, 20.0), min_size=8, max_size=8).map(np.array)
Ratio = npt.NDArray[np.float64]


def outcomes(seed: int, clips: int = 60) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores with ties, and whether the guess was wrong: low scores err more often."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 12, clips) / 12
    return score, rng.random(clips) > score


# Reliability.


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure, unsure = np.zeros((6, 8)), np.zeros((4, 8))
    sure[:, 0], sure[:, 1] = 0.9, 0.1
    unsure[:, 0], unsure[:, 1] = 0.55, 0.45
    posterior = np.concatenate([sure, unsure])
    truth = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 0])  # half of the sure ones, all of the unsure ones
    assert calibration_error(truth, posterior) == pytest.approx(0.6 * abs(0.9 - 0.5) + 0.4 * abs(0.55 - 1.0))
    assert calibration_error(np.zeros(3, np.int64), np.eye(8)[[0, 0, 0]]) == 0.0


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_reliability_is_that_of_scikit_learn(seed: int) -> None:
    posterior = random_posteriors(200, seed).astype(np.float64)
    truth = np.random.default_rng(seed).choice(COLUMNS, 200)
    found = reliability(truth, posterior, bins=10)
    accuracy, confidence = calibration_curve(
        posterior.argmax(axis=1) == truth, np.minimum(posterior.max(axis=1), 1.0), n_bins=10
    )
    assert found.accuracy == pytest.approx(accuracy)
    assert found.confidence == pytest.approx(confidence)
    assert sum(found.count) == 200
    assert min(found.count) > 0


@pytest.mark.parametrize("seed", range(5))
def test_posteriors_that_tell_the_truth_are_reliable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    posterior = random_posteriors(4000, seed).astype(np.float64)
    posterior /= posterior.sum(axis=1, keepdims=True)
    truth = (posterior.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    assert calibration_error(truth, posterior) < 0.06
    sharpened = posterior**4 / (posterior**4).sum(axis=1, keepdims=True)
    assert calibration_error(truth, sharpened) > 0.1


def test_losses_average_to_the_known_ones() -> None:
    posterior = np.random.default_rng(1).dirichlet(np.ones(8), 50)
    truth = np.random.default_rng(2).integers(0, 8, 50)
    assert log_losses(truth, posterior).mean() == pytest.approx(log_loss(truth, posterior, labels=range(8)))
    votes = np.random.default_rng(3).dirichlet(np.ones(8), 50)
    assert soft_losses(votes, posterior).mean() == pytest.approx(soft_cross_entropy(votes, posterior))
    assert log_losses(np.array([1]), np.eye(8)[[0]])[0] == pytest.approx(-np.log(1e-9))  # no infinite loss


# Prior correction.


@settings(deadline=None, max_examples=40)
@given(seeds, ratios)
def test_a_corrected_prior_is_a_bias_of_the_logits(seed: int, ratio: Ratio) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 8))
    plain, moved = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, logits + np.log(ratio)))
    np.testing.assert_allclose(correct_prior(plain, ratio), moved, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(seeds, ratios, st.floats(0.1, 10.0))
def test_corrections_can_be_undone_and_have_no_scale(seed: int, ratio: Ratio, scale: float) -> None:
    posterior = random_posteriors(20, seed)
    corrected = correct_prior(posterior, ratio)
    np.testing.assert_allclose(corrected.sum(axis=1), 1.0)
    assert (corrected[posterior == 0] == 0).all(), "a class that was never trained stays at exactly 0"
    np.testing.assert_allclose(correct_prior(corrected, 1 / ratio), posterior, atol=1e-6)
    np.testing.assert_allclose(correct_prior(posterior, scale * ratio), corrected, atol=1e-12)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_a_ratio_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        correct_prior(np.full((2, 8), 1 / 8), np.array([1.0] * 7 + [wrong]))


@settings(deadline=None, max_examples=40)
@given(seeds, ratios)
def test_the_fit_finds_the_prior_that_was_changed(seed: int, shift: Ratio) -> None:
    """Targets that are right under another prior: the fitted ratio leads back to them."""
    shift = shift**0.5
    posterior = random_posteriors(400, seed)
    targets = correct_prior(posterior, shift)
    ratio = fit_prior_ratio(posterior, targets)
    wanted = shift[COLUMNS] / np.exp(np.log(shift[COLUMNS]).mean())
    np.testing.assert_allclose(ratio[COLUMNS], wanted, rtol=0.15)
    assert np.log(ratio[COLUMNS]).mean() == pytest.approx(0.0, abs=1e-9)
    assert (np.delete(ratio, COLUMNS) == 1.0).all()


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_the_fit_matches_the_mean_and_never_explains_less(seed: int) -> None:
    posterior, targets = random_posteriors(200, seed), random_posteriors(200, seed + 1)
    corrected = correct_prior(posterior, fit_prior_ratio(posterior, targets))
    np.testing.assert_allclose(corrected.mean(axis=0), targets.mean(axis=0), atol=2 / 200)
    assert soft_cross_entropy(targets, corrected) <= soft_cross_entropy(targets, posterior) + 1e-3


def test_a_class_that_nobody_heard_keeps_a_chance() -> None:
    posterior = random_posteriors(100, 0)
    targets = np.eye(8)[np.full(100, COLUMNS[0])]
    corrected = correct_prior(posterior, fit_prior_ratio(posterior, targets))
    assert (corrected[:, COLUMNS].mean(axis=0) > 0).all()
    assert corrected[:, COLUMNS[0]].mean() > 0.98


# Abstaining.


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_risk_at_each_coverage_is_that_of_a_threshold(seed: int) -> None:
    score, wrong = outcomes(seed)
    curve = risk_coverage(score, wrong)
    thresholds = np.unique(score)[::-1]
    np.testing.assert_allclose(curve.coverage, [(score >= t).mean() for t in thresholds])
    np.testing.assert_allclose(curve.risk, [wrong[score >= t].mean() for t in thresholds])
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == wrong.mean()


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_risk_and_coverage_depend_on_the_order_alone(seed: int) -> None:
    score, wrong = outcomes(seed)
    curve = risk_coverage(score, wrong)
    order = np.random.default_rng(seed + 1).permutation(len(score))
    for other in (risk_coverage(score[order], wrong[order]), risk_coverage(3 * score**3 - 5, wrong)):
        np.testing.assert_array_equal(other.coverage, curve.coverage)
        np.testing.assert_array_equal(other.risk, curve.risk)


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_no_order_has_a_smaller_area_than_the_right_one(seed: int) -> None:
    _, wrong = outcomes(seed)
    rng = np.random.default_rng(seed)
    best = risk_coverage(np.where(wrong, 0.0, 1.0) + 0.1 * rng.random(len(wrong)), wrong).area
    assert best <= risk_coverage(rng.random(len(wrong)), wrong).area
    assert risk_coverage(np.ones(len(wrong)), wrong).area == pytest.approx(wrong.mean())
    assert risk_coverage(rng.random(5), np.zeros(5, bool)).area == 0.0


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_telling_errors_is_the_area_under_the_roc_curve(seed: int) -> None:
    score, wrong = outcomes(seed)
    assert error_auroc(-score, wrong) == pytest.approx(roc_auc_score(wrong, -score))
    assert error_auroc(score, wrong) == pytest.approx(1 - error_auroc(-score, wrong))


def test_without_errors_nothing_can_be_told() -> None:
    assert np.isnan(error_auroc(np.arange(4.0), np.zeros(4, bool)))
    assert np.isnan(error_auroc(np.arange(4.0), np.ones(4, bool)))


def test_disagreement_is_what_the_daemon_reports() -> None:
    members = np.stack([random_posteriors(5, 0), random_posteriors(5, 1)], axis=1)
    found = disagreements(members)
    assert found.tolist() == [disagreement(rows) for rows in members]
    assert (found > 0).all()
    assert disagreements(members[:, [0, 0]]) == pytest.approx(np.zeros(5), abs=1e-12)
