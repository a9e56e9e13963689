"""The linear probe: what the frozen features give without a network of ours. Every claim is held against it.

Logistic regression on mean and deviation over time of every audio encoder's frames, on the same clips as the members; its
regularisation is chosen on the development speakers, as the members' best epochs are.

Shapes: N = clips, d = width of all audio frames together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from model.spec import EncoderSpec
from train.cache import let_go
from train.dataset import FUNCTIONALS, Examples
from train.metrics import unweighted_average_recall
from train.reference import Guesses

STRENGTHS: Final = (1e-4, 1e-3, 1e-2)
"""Inverse regularisation, tried on the development speakers."""
LARGEST: Final = 20_000
"""Clips of a part that a probe reads, drawn evenly: logistic regression holds all of them in memory, several times."""
_ITERATIONS: Final = 300
_GUESSED: Final = 2000
"""Clips that are guessed at a time."""
_NOT_POOLED: Final = ("text-transformer", "functionals")
"""Words, and what is pooled already."""


def audio_modalities(encoders: Mapping[str, EncoderSpec]) -> tuple[str, ...]:
    """The modalities that a probe reads."""
    return tuple(name for name, encoder in encoders.items() if encoder.kind not in _NOT_POOLED)


def pooled(examples: Examples, modalities: Sequence[str]) -> npt.NDArray[np.float32]:
    """Mean and standard deviation over time of each modality, joined, `float32 [N, 2 d]`; functionals as they are."""
    rows = []
    for frames in zip(*(examples.frames[name] for name in modalities), strict=True):
        full = [values.astype(np.float32) for values in frames]
        let_go(frames)
        parts = [
            [x.ravel()] if name == FUNCTIONALS else [x.mean(axis=0), x.std(axis=0)]
            for name, x in zip(modalities, full, strict=True)
        ]
        rows.append(np.concatenate([part for found in parts for part in found]))
    return np.stack(rows)


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted probe.

    Attributes:
        strength: the inverse regularisation that was chosen.
        modalities: what it reads.
    """

    strength: float
    modalities: tuple[str, ...]
    _classifier: Pipeline

    @classmethod
    def fit(
        cls,
        train: Examples,
        dev: Examples,
        modalities: Sequence[str],
        strengths: Iterable[float] = STRENGTHS,
    ) -> Self:
        """Trains on acted classes, or on dominant ones where nobody acted; clips without either do not train it.

        Of more than `LARGEST` clips, as many are taken evenly. Where all have one class, it is guessed everywhere.
        """
        rows, labels = _labelled(train, modalities)
        dev_rows, dev_labels = _labelled(dev, modalities)
        is_one_class = len(np.unique(labels)) == 1

        def fitted(strength: float) -> Pipeline:
            regression = LogisticRegression(C=strength, max_iter=_ITERATIONS)  # wants two classes
            last = DummyClassifier(strategy="most_frequent") if is_one_class else regression
            return make_pipeline(StandardScaler(), last).fit(rows, labels)

        def score(probe: Pipeline) -> float:
            return unweighted_average_recall(dev_labels, np.asarray(probe.predict(dev_rows), np.int64))

        tried = {strength: fitted(strength) for strength in strengths}
        best = max(tried, key=lambda strength: score(tried[strength]))
        return cls(best, tuple(modalities), tried[best])

    def guesses(self, examples: Examples) -> Guesses:
        """Class index of every clip, `int64 [N]`."""
        parts = [examples.subset(range(n, min(n + _GUESSED, len(examples)))) for n in range(0, len(examples), _GUESSED)]
        guesses = [self._classifier.predict(pooled(part, self.modalities)) for part in parts]
        return np.concatenate([np.zeros(0, np.int64), *guesses]).astype(np.int64)


def _labelled(examples: Examples, modalities: Sequence[str]) -> tuple[npt.NDArray[np.float32], Guesses]:
    labels = examples.intended if (examples.intended >= 0).any() else examples.dominant
    known = np.flatnonzero(labels >= 0)
    if len(known) > LARGEST:
        known = known[np.linspace(0, len(known) - 1, LARGEST).round().astype(np.int64)]
    return pooled(examples.subset(known), modalities), labels[known]
