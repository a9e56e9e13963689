"""Classification metrics with intervals from a bootstrap over SPEAKERS: clips of one speaker are not independent.

Shapes: N = clips, 8 = classes in canonical order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model.labels import CLASSES

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating]
Metric = Callable[[Labels, Labels], float]

_RESAMPLES: Final = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def confusion(truth: Labels, guess: Labels) -> npt.NDArray[np.int64]:
    """Counts `[8, 8]`: rows are true classes, columns predicted ones."""
    size = len(CLASSES)
    return np.bincount(truth * size + guess, minlength=size * size).reshape(size, size)


def _recalls(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    totals = matrix.sum(axis=1)
    recalls: npt.NDArray[np.float64] = np.diag(matrix)[totals > 0] / totals[totals > 0]
    return recalls


def unweighted_average_recall(truth: Labels, guess: Labels) -> float:
    """UAR: mean recall over the classes that occur in `truth`."""
    return float(_recalls(confusion(truth, guess)).mean())


def class_f1(truth: Labels, guess: Labels) -> dict[str, float]:
    """F1 per class that occurs in `truth`."""
    matrix = confusion(truth, guess)
    hits = np.diag(matrix)
    sizes = matrix.sum(axis=1) + matrix.sum(axis=0)
    return {
        name: float(2 * hits[index] / sizes[index]) for index, name in enumerate(CLASSES) if matrix[index].sum() > 0
    }


def macro_f1(truth: Labels, guess: Labels) -> float:
    """Mean F1 over the classes that occur in `truth`."""
    return float(np.mean(list(class_f1(truth, guess).values())))


def micro_f1(truth: Labels, guess: Labels) -> float:
    """F1 of all decisions pooled; with one label and one guess a clip, it equals accuracy."""
    matrix = confusion(truth, guess)
    hits = np.diag(matrix).sum()
    false_alarms, misses = matrix.sum(axis=0).sum() - hits, matrix.sum(axis=1).sum() - hits
    return float(2 * hits / (2 * hits + false_alarms + misses))


def accuracy(truth: Labels, guess: Labels) -> float:
    """Share of correct guesses."""
    return float((truth == guess).mean())


def concordance(truth: npt.NDArray[np.floating], guess: npt.NDArray[np.floating]) -> float:
    """CCC of ratings `[N]` with guesses `[N]`, -1..1; NaN where fewer than two clips are rated.

    Clips without a rating (NaN) do not count. Two constants that are equal agree perfectly.

    Source: Lin (1989), "A Concordance Correlation Coefficient to Evaluate Reproducibility", Biometrics 45(1).
    """
    rated = ~np.isnan(truth)
    x, y = truth[rated].astype(np.float64), guess[rated].astype(np.float64)
    if len(x) < 2:
        return float("nan")
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return 1.0 if spread == 0 else float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread)


def soft_cross_entropy(targets: Probabilities, posterior: Probabilities) -> float:
    """Mean cross-entropy in nats of posteriors `[N, 8]` against vote vectors `[N, 8]`."""
    return float(-(targets * np.log(np.clip(posterior, 1e-9, 1.0))).sum(axis=1).mean())


def jensen_shannon(targets: Probabilities, posterior: Probabilities) -> float:
    """Mean Jensen-Shannon distance (square root of the divergence in bits, 0..1) to the vote vectors."""

    def divergence(p: Probabilities, q: Probabilities) -> npt.NDArray[np.floating]:
        bits: npt.NDArray[np.floating] = p * np.log2(np.clip(p, 1e-12, 1) / np.clip(q, 1e-12, 1))
        return np.asarray(np.where(p > 0, bits, 0.0).sum(axis=1))

    middle = (targets + posterior) / 2
    value = (divergence(targets, middle) + divergence(posterior, middle)) / 2
    return float(np.sqrt(np.clip(value, 0, 1)).mean())


def _resamples(speakers: Sequence[str], seed: int) -> Iterator[Labels]:
    """Rows of as many speakers, drawn with replacement, at every draw."""
    names = np.array(speakers)
    rows_of = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    for _ in range(_RESAMPLES):
        yield np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))])


def speaker_bootstrap(speakers: Sequence[str], statistic: Callable[[Labels], float], seed: int = 0) -> Estimate:
    """95 % interval of `statistic(rows)` when whole speakers are drawn with replacement.

    Draws for which the statistic does not exist (NaN) do not count; without any other, all three figures are NaN.

    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13 (percentile interval).
    """
    values = np.array([statistic(rows) for rows in _resamples(speakers, seed)])
    value = statistic(np.arange(len(speakers)))
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def class_f1_intervals(truth: Labels, guess: Labels, speakers: Sequence[str]) -> dict[str, Estimate]:
    """F1 per class that occurs in `truth`, each with its speaker-bootstrap interval, all from the same draws."""
    drawn = [class_f1(truth[rows], guess[rows]) for rows in _resamples(speakers, seed=0)]
    estimates = {}
    for name, value in class_f1(truth, guess).items():
        low, high = np.percentile([scores[name] for scores in drawn if name in scores], [2.5, 97.5])
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def interval(metric: Metric, truth: Labels, guess: Labels, speakers: Sequence[str]) -> Estimate:
    """A metric with its speaker-bootstrap interval."""
    return speaker_bootstrap(speakers, lambda rows: metric(truth[rows], guess[rows]))


def paired_difference(
    metric: Metric, truth: Labels, first: Labels, second: Labels, speakers: Sequence[str]
) -> Estimate:
    """`metric(first) - metric(second)` on the same clips: a gain is real where the interval excludes 0."""
    return speaker_bootstrap(
        speakers, lambda rows: metric(truth[rows], first[rows]) - metric(truth[rows], second[rows])
    )


def balanced_macro_f1(truth: Labels, guess: Labels, resamples: int, seed: int) -> float:
    """Macro-F1 averaged over class-balanced resamples of the rows: the selection metric of stages 1 and 2."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(truth == label) for label in np.unique(truth)]
    size = min(map(len, groups))
    values = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(group, size, replace=False) for group in groups])
        values.append(macro_f1(truth[rows], guess[rows]))
    return float(np.mean(values))
