"""How far posteriors can be believed: reliability, prior correction, abstention, disagreement. Pure numpy.

Shapes: N = clips, M = members, 8 = classes in canonical order.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model.posteriors import disagreement

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating]
Values = npt.NDArray[np.float64]

_BINS: Final = 15
_ROUNDS: Final = 2000
_CLOSE_ENOUGH: Final = 1e-9
_LEAST: Final = 1e-9
"""Probability that the log loss reads in the place of 0."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidence against accuracy in equal bins of confidence; empty bins are left out.

    Attributes:
        confidence: mean confidence of each bin.
        accuracy: share of right guesses of each bin.
        count: clips of each bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Share of wrong guesses among the clips that a threshold keeps, from the strictest threshold to none.

    Attributes:
        coverage: share of clips kept, rising to 1.
        risk: share of wrong guesses among them.
    """

    coverage: Values
    risk: Values

    @property
    def area(self) -> float:
        """AURC: mean risk over coverage 0..1; 0 where every guess is right."""
        return float((np.diff(self.coverage, prepend=0.0) * self.risk).sum())


def reliability(truth: Labels, posterior: Probabilities, bins: int = _BINS) -> Reliability:
    """Confidence against accuracy of posteriors `[N, 8]`.

    Source: Niculescu-Mizil & Caruana (2005), "Predicting Good Probabilities With Supervised Learning", ICML.
    """
    confidence, hit = posterior.max(axis=1), posterior.argmax(axis=1) == truth
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    parts = [number == index for index in np.unique(number)]
    return Reliability(
        confidence=tuple(float(confidence[part].mean()) for part in parts),
        accuracy=tuple(float(hit[part].mean()) for part in parts),
        count=tuple(int(part.sum()) for part in parts),
    )


def calibration_error(truth: Labels, posterior: Probabilities, bins: int = _BINS) -> float:
    """ECE, 0..1: mean gap between confidence and accuracy over bins of confidence, weighted by their size.

    Source: Naeini, Cooper & Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI.
    """
    found = reliability(truth, posterior, bins)
    gaps = np.abs(np.array(found.confidence) - np.array(found.accuracy))
    return float((gaps * found.count).sum() / len(truth))


def log_losses(truth: Labels, posterior: Probabilities) -> Values:
    """Log loss of each clip `[N]` in nats: the proper score that ECE is not."""
    right = posterior[np.arange(len(truth)), truth].astype(np.float64)
    return np.asarray(-np.log(np.clip(right, _LEAST, 1.0)), np.float64)


def soft_losses(targets: Probabilities, posterior: Probabilities) -> Values:
    """Cross-entropy of each clip `[N]` in nats to its vote vector, as `train.metrics.soft_cross_entropy` averages it."""
    return np.asarray(-(targets * np.log(np.clip(posterior, _LEAST, 1.0))).sum(axis=1), np.float64)


def correct_prior(posterior: Probabilities, ratio: Values) -> Values:
    """Posteriors `[N, 8]` under another class prior: times `ratio [8]`, normalised.

    The same as adding `log(ratio)` to the logits, after the temperature. Only the ratio's proportions matter.

    Args:
        posterior: under the prior that training taught.
        ratio: target prior over training prior, positive.

    Source: Saerens, Latinne & Decaestecker (2002), "Adjusting the Outputs of a Classifier to New a Priori
    Probabilities", Neural Computation 14(1).

    Raises:
        ValueError: if a ratio is not positive.
    """
    if not (np.isfinite(ratio) & (ratio > 0)).all():
        raise ValueError(f"a prior ratio is positive and finite for every class, got {ratio.tolist()}")
    shifted = posterior.astype(np.float64) * ratio
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float64)


def fit_prior_ratio(posterior: Probabilities, targets: Probabilities) -> Values:
    """Target prior over training prior `[8]`, with the greatest likelihood on held-out speakers.

    Balanced draws and class weights leave no training prior that could be counted, so the ratio is fitted: it is the
    class bias with the least soft cross-entropy, found where the corrected posteriors' mean is the mean target. One
    clip's worth of the posteriors' own mean stands beside the targets, so that a class nobody heard keeps a chance.

    Args:
        posterior: calibrated posteriors of held-out speakers `[N, 8]`, exactly 0 for classes that were never trained.
        targets: their vote vectors `[N, 8]`.

    Returns:
        Positive, with the geometric mean 1 over the trained classes, and 1 for the others.

    Source: Alexandari, Kundaje & Shrikumar (2020), "Maximum Likelihood with Bias-Corrected Calibration is Hard-to-Beat
    at Label Shift Adaptation", arXiv:1901.06852; iterations: Darroch & Ratcliff (1972), generalised iterative scaling.
    """
    own = posterior.astype(np.float64)
    trained = own.sum(axis=0) > 0
    own_mean = own[:, trained].mean(axis=0)
    wanted = targets[:, trained].astype(np.float64)
    wanted_mean = (wanted.sum(axis=0) + own_mean) / (wanted.sum() + own_mean.sum())
    found = np.ones(int(trained.sum()))
    for _ in range(_ROUNDS):
        mean = correct_prior(own[:, trained], found).mean(axis=0)
        if np.abs(mean - wanted_mean).max() < _CLOSE_ENOUGH:
            break
        found *= wanted_mean / mean
        found /= np.exp(np.log(found).mean())
    ratio = np.ones(posterior.shape[1])
    ratio[trained] = found
    return ratio


def risk_coverage(score: Probabilities, wrong: npt.NDArray[np.bool_]) -> RiskCoverage:
    """Risk at every coverage when clips are kept by falling `score [N]`; equal scores are kept together.

    Source: El-Yaniv & Wiener (2010), "On the Foundations of Noise-free Selective Classification", JMLR 11.
    """
    order = np.argsort(-score, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    kept = last_of_ties + 1
    return RiskCoverage(kept / len(score), np.cumsum(wrong[order])[last_of_ties] / kept)


def error_auroc(doubt: Probabilities, wrong: npt.NDArray[np.bool_]) -> float:
    """Chance that a wrong guess has more `doubt [N]` than a right one, ties half: 0.5 tells nothing; NaN without both.

    Source: Hendrycks & Gimpel (2017), "A Baseline for Detecting Misclassified and Out-of-Distribution Examples".
    """
    bad, good = doubt[wrong], np.sort(doubt[~wrong])
    if not len(bad) or not len(good):
        return float("nan")
    below, up_to = np.searchsorted(good, bad, "left"), np.searchsorted(good, bad, "right")
    return float((below + up_to).mean() / 2 / len(good))


def disagreements(members: npt.NDArray[np.float32]) -> Values:
    """The members' disagreement on every clip `[N]`, as the daemon reports it, from posteriors `[N, M, 8]`."""
    return np.array([disagreement(rows) for rows in members], np.float64)
