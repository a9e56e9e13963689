"""Guesses in the place of labels: what trains beside labelled examples, or without any.

Source: Lee (2013), "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"; soft and
sharpened as Berthelot et al. (2019), "MixMatch", arXiv:1905.02249, section 3.2, has them.

Shapes: N = utterances, 8 = classes in canonical order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from model.labels import CLASSES
from train.dataset import Examples, concatenate


@dataclass(frozen=True, slots=True)
class Guessed:
    """Examples whose targets are guesses.

    Attributes:
        by_fold: fold number -> their copies: of none of the fold's speakers, and guessed by members that have not heard these;
            a fold for which there are none is left out.
        label_weight: how often a labelled example stands beside them, unless it is fewer times more that they are.
    """

    by_fold: Mapping[int, tuple[Examples, ...]]
    label_weight: int

    def beside(self, copies: Sequence[Examples], fold: int, classes: Sequence[str] = CLASSES) -> tuple[Examples, ...]:
        """Copies of labelled examples with these beside them; of whichever has fewer copies, they are taken in turn.

        Args:
            copies: of the labelled examples.
            fold: whose speakers are left out.
            classes: that guesses are shared out among: those that the loss compares, the classes that some guess is first for
                among them.
        """
        if fold not in self.by_fold:
            return tuple(copies)
        guessed = [_among(classes, examples) for examples in self.by_fold[fold]]
        times_more = len(guessed[0]) // max(1, len(copies[0]))
        weight = max(1, min(self.label_weight, times_more))  # a handful of guesses does not multiply the epoch
        return tuple(
            concatenate([*[copies[n % len(copies)]] * weight, guessed[n % len(guessed)]])
            for n in range(max(len(copies), len(guessed)))
        )

    def classes(self, fold: int) -> frozenset[int]:
        """Indices of the classes that some guess is first for."""
        return (
            frozenset(int(index) for index in self.by_fold[fold][0].dominant) if fold in self.by_fold else frozenset()
        )


def _among(classes: Sequence[str], examples: Examples) -> Examples:
    kept = examples.targets * np.isin(CLASSES, classes)
    return replace(examples, targets=np.asarray(kept / kept.sum(axis=1, keepdims=True), np.float32))


def sharpened(posterior: npt.NDArray[np.float32], sharpness: float) -> npt.NDArray[np.float32]:
    """Posteriors `[N, 8]` to a power, normalised: above 1, guesses become surer of themselves."""
    surest = posterior.max(axis=1, keepdims=True).astype(np.float64)  # so that no row is raised to nothing
    raised = (posterior / surest) ** sharpness
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)
