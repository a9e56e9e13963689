"""Posteriors of one utterance: from an ensemble's outputs to what a client reads.

Shapes: M = members, 8 = classes in canonical order, 3 = attributes in canonical order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model.labels import ATTRIBUTES, CLASSES

EPSILON: Final = 1e-9
"""Added to every probability before logarithms are taken of it."""


@dataclass(frozen=True, slots=True)
class Posteriors:
    """Emotion posteriors of one utterance.

    Attributes:
        probabilities: 8 values in canonical order, sum 1; exactly 0 for a class that was never trained.
        attributes: arousal, valence, dominance in 1..7; None where the bundle was not trained on it.
        uncertainty: disagreement of the members in 0..1: the Jensen-Shannon divergence of their posteriors.
        abstained: the confidence lies below the bundle's abstention threshold.
        modality_share: modality -> its share of the fused vector, sum 1, in the order of `EnsembleSpec.shared_by`: the mean
            over the members that have shares. Empty where no member has.
        members_used: names of the members that were asked, where it was not all of them; empty where it was.
    """

    probabilities: tuple[float, ...]
    attributes: tuple[float | None, ...]
    uncertainty: float
    abstained: bool
    modality_share: tuple[tuple[str, float], ...] = ()
    members_used: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """The class with the highest probability; of equal ones, the first in canonical order."""
        return CLASSES[int(np.argmax(self.probabilities))]

    @property
    def confidence(self) -> float:
        """The highest probability."""
        return max(self.probabilities)


def posteriors_of(
    probabilities: npt.NDArray[np.float32],
    attributes: npt.NDArray[np.float32],
    member_probabilities: npt.NDArray[np.float32],
    trained_attributes: tuple[str, ...],
    abstain_below: float,
) -> Posteriors:
    """Builds one utterance's posteriors from the ensemble's rows `[8]`, `[3]` and `[M, 8]`.

    Raises:
        ValueError: if a probability is not finite: a failed model never becomes a posterior.
    """
    if not np.isfinite(probabilities).all():
        raise ValueError(f"the ensemble gave probabilities that are not finite: {probabilities.tolist()}")
    normal = probabilities.astype(np.float64)
    normal /= normal.sum()
    return Posteriors(
        probabilities=tuple(map(float, normal)),
        attributes=tuple(
            float(value) if name in trained_attributes else None
            for name, value in zip(ATTRIBUTES, attributes, strict=True)
        ),
        uncertainty=disagreement(member_probabilities),
        abstained=bool(normal.max() < abstain_below),
    )


def shares_of(names: Sequence[str], rows: npt.NDArray[np.float32]) -> list[tuple[tuple[str, float], ...]]:
    """Shares `[B, S]` of what `names` are, as `Posteriors.modality_share` has them.

    Raises:
        ValueError: if a share is not finite.
    """
    if not np.isfinite(rows).all():
        raise ValueError(f"the ensemble gave shares of {', '.join(names)} that are not finite: {rows.tolist()}")
    normal = rows.astype(np.float64)
    normal /= normal.sum(axis=1, keepdims=True)
    return [tuple(zip(names, map(float, row), strict=True)) for row in normal]


def disagreement(member_probabilities: npt.NDArray[np.float32]) -> float:
    """Jensen-Shannon divergence of M distributions `[M, 8]`, in bits over log2(M), so that it lies in 0..1.

    0 for a single member: one opinion cannot disagree with itself.
    """
    members = len(member_probabilities)
    if members < 2:
        return 0.0
    p = member_probabilities.astype(np.float64) + EPSILON
    p /= p.sum(axis=1, keepdims=True)
    mean = p.mean(axis=0)
    divergence = (p * np.log2(p / mean)).sum(axis=1).mean()
    return float(np.clip(divergence / np.log2(members), 0.0, 1.0))
