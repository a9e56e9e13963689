"""Whether what is heard is still what the models were made for: statistics of results, for Prometheus; docs/operations.md.

Sums of posteriors and of their entropy are counters, so a window of any length, over any number of processes, is a query.
Of functionals, hundreds of numbers per utterance, the mean over the last utterances is kept here, and how far it lies from
that of the training data, which the bundle knows where it adapts to channels. Where the bundle does not, there is no such
metric. Numbers of an utterance are worked into arrays that are there already.

Shapes: d = width of the functionals.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from daemon.messages import CallEvent, EmotionEvent, Event
from model.adaptation import NO_HISTORY, History
from model.labels import CLASSES

_ENTROPIES: Final = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Bits; eight classes alike are 3."""
_WINDOW: Final = 500.0
"""Utterances of full length that the mean of functionals counts for."""
_LEAST: Final = 50.0
"""Before as many, a mean says more about a few speakers than about all."""
_SPREAD_FLOOR: Final = 1e-12

_Vector = npt.NDArray[np.float64]


class _Functionals:
    """Running mean and variance of the distance of functionals `[d]` from their reference, with weights.

    Source: West (1979), "Updating mean and variance estimates: an improved method", with a window instead of all of time.
    """

    def __init__(self, width: int) -> None:
        self._mean: _Vector = np.zeros(width)
        self._variance: _Vector = np.zeros(width)
        self._delta: _Vector = np.zeros(width)
        self._part: _Vector = np.zeros(width)
        self._weight = 0.0

    def add(self, before: History, after: History) -> None:
        """The utterance by which two histories of a channel differ."""
        weight = after.weight - before.weight
        if after.deviation is None or weight <= 0:
            return
        self._weight += weight
        share = weight / min(self._weight, _WINDOW)
        if before.deviation is None:
            np.copyto(self._delta, after.deviation[0])
        else:
            np.subtract(after.deviation[0], before.deviation[0], out=self._delta)
        self._delta /= weight
        self._delta -= self._mean
        np.multiply(self._delta, share, out=self._part)
        self._mean += self._part
        self._part *= self._delta
        self._variance += self._part
        self._variance *= 1.0 - share

    @property
    def distance(self) -> float | None:
        """Mean over all numbers of |mean| in standard deviations of what is heard; None while too little was."""
        if self._weight < _LEAST:
            return None
        return float((np.abs(self._mean) / np.sqrt(self._variance + _SPREAD_FLOOR)).mean())


class _Model:
    """What was heard of one bundle's results."""

    def __init__(self) -> None:
        self.utterances = 0
        self.abstained = 0
        self.sums = [0.0] * len(CLASSES)
        self.entropy = 0.0
        self.buckets = [0] * (len(_ENTROPIES) + 1)
        self.functionals: _Functionals | None = None


class Drift:
    """A Prometheus collector that observes results."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._histories: dict[str, dict[int, History]] = {}
        """By session and channel, as of the last result."""

    def observe(self, event: Event) -> None:
        """Takes note of a final result."""
        if isinstance(event, CallEvent) and event.type != "call.started":
            self._histories.pop(event.info.session, None)
        if not isinstance(event, EmotionEvent) or not event.utterance.final:
            return
        model = self._models.setdefault(event.info.model, _Model())
        posteriors = event.scores.posteriors
        entropy = _entropy(posteriors.probabilities)
        model.utterances += 1
        model.abstained += posteriors.abstained
        model.entropy += entropy
        model.buckets[bisect_left(_ENTROPIES, entropy)] += 1
        for index, probability in enumerate(posteriors.probabilities):
            model.sums[index] += probability
        self._hear(model, event)

    def _hear(self, model: _Model, event: EmotionEvent) -> None:
        after = event.scores.history
        if after.deviation is None:
            return
        channels = self._histories.setdefault(event.info.session, {})
        before = channels.get(event.utterance.channel, NO_HISTORY)
        channels[event.utterance.channel] = after
        if model.functionals is None:
            model.functionals = _Functionals(after.deviation.shape[1])
        model.functionals.add(before, after)

    def collect(self) -> Iterator[Any]:
        """The metrics; where there is nothing to say, there is no sample."""
        count = CounterMetricFamily(
            "medusa_drift_utterances", "Final results that are looked at for drift", labels=["model"]
        )
        abstained = CounterMetricFamily("medusa_drift_abstained", "Of those, the abstained", labels=["model"])
        probability = CounterMetricFamily(
            "medusa_drift_probability", "Sum of the probabilities of a class", labels=["model", "emotion"]
        )
        entropy = HistogramMetricFamily("medusa_drift_entropy", "Entropy of posteriors", labels=["model"])
        distance = GaugeMetricFamily(
            "medusa_drift_functionals_distance",
            "Distance of the mean functionals from those of the training data, in standard deviations",
            labels=["model"],
        )
        for name, model in self._models.items():
            count.add_metric([name], model.utterances)
            abstained.add_metric([name], model.abstained)
            for emotion, total in zip(CLASSES, model.sums, strict=True):
                probability.add_metric([name, emotion], total)
            entropy.add_metric([name], _cumulative(model.buckets), model.entropy)
            if model.functionals is not None and (found := model.functionals.distance) is not None:
                distance.add_metric([name], found)
        yield from (count, abstained, probability, entropy, distance)


def _entropy(probabilities: tuple[float, ...]) -> float:
    """In bits."""
    return max(0.0, -sum(p * math.log2(p) for p in probabilities if p > 0))


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*map(str, _ENTROPIES), "+Inf"), buckets, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
