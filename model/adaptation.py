"""An utterance heard against what its channel sounded like before: microphone, line, room and voice taken out.

Functionals of one emotion differ more between two telephones, or two speakers, than functionals of two emotions on one. What
a channel's earlier utterances have in common is therefore subtracted, as far as there are any:

    x' = x - sum_i w_i (x_i - r) / (sum_i w_i + k)

with x_i the functionals of the earlier utterances, r the mean of the training data, w_i how much an utterance says about its
channel (its length), and k how many utterances the training data counts for. It is causal: the first utterance of a channel is
taken as it is, and no result is ever changed by what comes later.

Shapes: S = steps of the functionals, d = their width.

Source: shrunken mean normalisation of speaker and channel; compare Busso et al. (2011), "Iterative feature normalization scheme
for automatic emotion detection from speech", IEEE Transactions on Affective Computing 4(4).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE_HZ
from model.features import Frames

FUNCTIONALS: Final = "functionals"
"""Name of the modality that is adapted."""
FULL_WEIGHT: Final = 2 * SAMPLE_RATE_HZ
"""Samples from which on an utterance counts fully; the functionals of a short one are its words more than its voice."""


@dataclass(frozen=True, slots=True)
class History:
    """What a channel sounded like so far; begins empty.

    Attributes:
        deviation: weighted sum of the differences from the reference, `float64 [S, d]`; None while there is nothing.
        weight: sum of the weights.
    """

    deviation: npt.NDArray[np.float64] | None = None
    weight: float = 0.0


NO_HISTORY: Final = History()
"""Of a channel that was not heard yet."""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How functionals are adapted to their channel.

    Attributes:
        reference: mean functionals of the training data, `float32 [S, d]`.
        strength: utterances that the reference counts for, above 0: the smaller, the faster a channel is learned, and the
            sooner one that is of one mood throughout is taken for a neutral one.

    Raises:
        ValueError: if `strength` is not above 0, or the reference is not finite.
    """

    reference: Frames
    strength: float

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"the strength of an adaptation is above 0, got {self.strength}")
        if self.reference.ndim != 2 or not np.isfinite(self.reference).all():
            raise ValueError(f"a reference is finite [S, d], got {list(self.reference.shape)}")

    def adapted(self, functionals: Frames, history: History) -> Frames:
        """Functionals `float32 [S, d]` as the members read them.

        Raises:
            ValueError: if they have another shape than the reference.
        """
        self._check(functionals)
        if history.deviation is None:
            return functionals
        shift = history.deviation / (history.weight + self.strength)
        return (functionals - shift).astype(np.float32)

    def heard(self, history: History, functionals: Frames, samples: int) -> History:
        """The history with one more utterance of `samples` samples: its functionals as they were, not adapted.

        Raises:
            ValueError: if they have another shape than the reference.
        """
        self._check(functionals)
        weight = min(1.0, samples / FULL_WEIGHT)
        deviation = weight * (functionals.astype(np.float64) - self.reference)
        if history.deviation is not None:
            deviation += history.deviation
        return History(deviation, history.weight + weight)

    def known(self, history: History) -> float:
        """How far a channel is known, in 0..1: the share of what it has in common that is taken out."""
        return history.weight / (history.weight + self.strength)

    def _check(self, functionals: Frames) -> None:
        if functionals.shape != self.reference.shape:
            raise ValueError(
                f"functionals are {list(self.reference.shape)} as in training, got {list(functionals.shape)}"
            )
