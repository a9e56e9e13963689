"""Priors estimated without labels."""

import numpy as np
import pytest
import torch

from model.labels import CLASSES
from model.network.metaclassifier import MetaClassifier
from train.calibration import correct_prior
from train.loop import class_bias
from train.stages.meta import meta_posterior
from train.transfer.prior import Prior, estimate_prior, expecting

KNOWN = np.array([name in ("angry", "sad", "neutral") for name in CLASSES])


def posteriors(prior: np.ndarray, count: int, believed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact posteriors under `believed` of classes drawn from `prior`, each heard as a normal around its own mean."""
    rng = np.random.default_rng(5)
    means = 2.2 * np.eye(len(CLASSES))
    classes = rng.choice(len(CLASSES), count, p=prior)
    heard = means[classes] + rng.standard_normal((count, len(CLASSES)))
    likelihood = np.exp(-0.5 * np.square(heard[:, None, :] - means[None]).sum(axis=2))
    joint = likelihood * believed
    return joint / joint.sum(axis=1, keepdims=True), classes


def test_a_known_shift_is_recovered() -> None:
    believed = KNOWN / KNOWN.sum()
    true = np.where(KNOWN, [0.1, 0.2, 0, 0, 0, 0, 0, 0.7], 0.0)
    heard, classes = posteriors(true, 6000, believed)
    found = estimate_prior(heard, believed)
    np.testing.assert_allclose(found.found, true, atol=0.02)
    assert np.abs(heard.mean(axis=0) - true).max() > 0.03, "the mean posterior is not the prior"
    better = correct_prior(heard, found.ratio).argmax(axis=1) == classes
    assert better.mean() > (heard.argmax(axis=1) == classes).mean() + 0.02


def test_no_shift_is_none() -> None:
    believed = np.where(KNOWN, [0.5, 0.2, 0, 0, 0, 0, 0, 0.3], 0.0)
    found = estimate_prior(posteriors(believed, 6000, believed)[0], believed)
    np.testing.assert_allclose(found.found, believed, atol=0.02)
    assert (found.ratio[~KNOWN] == 1.0).all()


def test_few_utterances_rule_no_class_out() -> None:
    sure = np.tile(np.where(KNOWN, [0.999, 0.0005, 0, 0, 0, 0, 0, 0.0005], 0.0), (4, 1))
    found = estimate_prior(sure, KNOWN.astype(np.float64))
    assert found.found[KNOWN].min() > 0.05
    assert found.found.sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="needs posteriors"):
        estimate_prior(sure[:0], KNOWN.astype(np.float64))


def test_the_meta_classifier_expects_the_prior_behind_its_temperature() -> None:
    torch.manual_seed(1)
    meta, outputs = MetaClassifier(2), torch.rand(9, 22)
    bias, temperature = class_bias(("angry", "sad", "neutral")), 1.7
    before = meta_posterior(meta, outputs, bias, temperature)
    prior = Prior(KNOWN / 3, np.where(KNOWN, [0.1, 0.2, 0, 0, 0, 0, 0, 0.7], 0.0))
    after = meta_posterior(expecting(meta, prior, temperature), outputs, bias, temperature)
    np.testing.assert_allclose(after, correct_prior(before, prior.ratio), atol=1e-6)
    np.testing.assert_array_equal(meta_posterior(meta, outputs, bias, temperature), before)
