"""Guesses in the place of labels: what trains beside labelled examples, or without any.

Source: Lee (2013), "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"; soft and
sharpened as Berthelot et al. (2019), "MixMatch", arXiv:1905.02249, section 3.2, has them.

Shapes: N = utterances, 8 = classes in canonical order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.dataset import Examples, concatenate


@dataclass(frozen=True, slots=True)
class Guessed:
    """Examples whose targets are guesses.

    Attributes:
        by_fold: fold number -> their copies: of none of the fold's speakers, and guessed by members that have not heard these.
        label_weight: how often a labelled example stands beside them.
    """

    by_fold: Mapping[int, tuple[Examples, ...]]
    label_weight: int

    def beside(self, copies: Sequence[Examples], fold: int) -> tuple[Examples, ...]:
        """Copies of labelled examples with these beside them; of whichever has fewer copies, they are taken in turn."""
        guessed = self.by_fold[fold]
        return tuple(
            concatenate([*[copies[n % len(copies)]] * self.label_weight, guessed[n % len(guessed)]])
            for n in range(max(len(copies), len(guessed)))
        )


def sharpened(posterior: npt.NDArray[np.float32], sharpness: float) -> npt.NDArray[np.float32]:
    """Posteriors `[N, 8]` to a power, normalised: above 1, guesses become surer of themselves."""
    raised = posterior.astype(np.float64) ** sharpness
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)
