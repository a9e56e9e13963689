"""How often each emotion occurs in calls that nobody has labelled, and an ensemble that expects it so.

Shapes: N = utterances, M = members, 8 = classes in canonical order.
"""

import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.network.metaclassifier import MetaClassifier

_ROUNDS: Final = 1000
_CLOSE_ENOUGH: Final = 1e-8


@dataclass(frozen=True, slots=True)
class Prior:
    """A class prior that was estimated.

    Attributes:
        expected: what the posteriors were taken to expect, `float64 [8]`, sum 1.
        found: of the utterances, `float64 [8]`, sum 1.
    """

    expected: npt.NDArray[np.float64]
    found: npt.NDArray[np.float64]

    @property
    def ratio(self) -> npt.NDArray[np.float64]:
        """What posteriors are multiplied by, `[8]`; 1 for classes that have no probability."""
        known = self.expected > 0
        return np.where(known, self.found / np.where(known, self.expected, 1.0), 1.0)


def estimate_prior(posterior: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> Prior:
    """The class prior of greatest likelihood for posteriors `[N, 8]` whose own prior is `expected [8]`.

    It is right where only the prior differs. Where the audio sounds different too, posteriors are wrong in one direction,
    and their mistakes are taken for the prior.

    Source: Saerens, Latinne & Decaestecker (2002), "Adjusting the Outputs of a Classifier to New a Priori
    Probabilities", Neural Computation 14(1): expectation maximisation. One utterance of `expected` counts beside the N, so
    that no class is ruled out for good.

    Raises:
        ValueError: if there is no posterior, or `expected` has no mass.
    """
    if not len(posterior) or not expected.sum() > 0:
        raise ValueError(
            f"a prior needs posteriors and an expected prior with mass, got {len(posterior)} and {expected}"
        )
    own = posterior.astype(np.float64)
    old = expected.astype(np.float64) / expected.sum()
    known = old > 0
    found = old.copy()
    for _ in range(_ROUNDS):
        shifted = own[:, known] * (found[known] / old[known])
        mean = (shifted / shifted.sum(axis=1, keepdims=True)).sum(axis=0)
        last, found = found, np.zeros_like(old)
        found[known] = (mean + old[known]) / (len(own) + 1)
        if np.abs(found - last).max() < _CLOSE_ENOUGH:
            break
    return Prior(old, found)


def expecting(meta: MetaClassifier, prior: Prior, temperature: float) -> MetaClassifier:
    """The meta-classifier whose calibrated posteriors are those of `meta` times the prior's ratio, normalised."""
    moved = copy.deepcopy(meta)
    with torch.no_grad():
        log_ratio = torch.from_numpy(np.log(np.maximum(prior.ratio, 1e-12))).float()
        moved.linear.bias[: len(log_ratio)] += temperature * log_ratio
    return moved.eval()
