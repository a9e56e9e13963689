"""The multitask loss of stages 1 to 3, class weights, and Manifold MixUp.

Source: MEDUSA, arXiv:2506.09556, section 2.2: 1.5 * cross-entropy + 0.4 * mean squared error. Options, off by default: the
focal loss (Lin et al. 2017, arXiv:1708.02002) and label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7).

Shapes: B = batch, C = 8 classes, A = 3 attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from model.labels import ATTRIBUTE_RANGE

CROSS_ENTROPY_WEIGHT = 1.5
ATTRIBUTE_WEIGHT = 0.4
CLASS_WEIGHT_EXPONENT = 0.5


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss' terms; the defaults are the paper's.

    Attributes:
        cross_entropy: weight of the classes.
        attributes: weight of the squared error of attributes.
        focal_gamma: exponent gamma >= 0 of the focal loss; 0 is cross-entropy.
        label_smoothing: share in 0..1 of the uniform distribution in the targets.
    """

    cross_entropy: float = CROSS_ENTROPY_WEIGHT
    attributes: float = ATTRIBUTE_WEIGHT
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0


PAPER: Final = Terms()


@dataclass(frozen=True, slots=True)
class Labels:
    """What a batch is trained towards.

    Attributes:
        classes: soft targets `float32 [B, C]`, rows sum to 1.
        attributes: `float32 [B, A]` in 1..7, anything where missing.
        rated: `bool [B, A]`: false where an attribute is missing.
    """

    classes: Tensor
    attributes: Tensor
    rated: Tensor


@dataclass(frozen=True, slots=True)
class Totals:
    """What the sums of a loss are divided by, where several batches make one optimizer step.

    Attributes:
        rows: examples of all the step's batches.
        rated: ratings that they have.
    """

    rows: int
    rated: int


def totals_of(parts: Sequence[Labels]) -> Totals:
    """Of all batches of a step: the losses of its parts then add up to the loss of one large batch."""
    return Totals(sum(len(part.rated) for part in parts), sum(int(part.rated.sum()) for part in parts))


def multitask_loss(
    logits: Tensor,
    attributes: Tensor,
    labels: Labels,
    class_weights: Tensor,
    class_bias: Tensor,
    totals: Totals | None = None,
    terms: Terms = PAPER,
) -> Tensor:
    """Scalar loss of one batch, or its part in the loss of a step of several batches.

    Args:
        logits: `[B, C]`.
        attributes: predictions `[B, A]` in 1..7.
        labels: the targets.
        class_weights: `[C]`, 1 everywhere for an unweighted loss.
        class_bias: `[C]`, 0 for trained classes and a large negative number for others.
        totals: counts over the whole step; None where this batch is the step.
        terms: weights of the two losses, focal exponent, label smoothing.
    """
    log_posterior = torch.log_softmax(logits + class_bias, dim=1)
    per_class = class_weights * smoothed(labels.classes, class_bias, terms.label_smoothing) * log_posterior
    if terms.focal_gamma:
        per_class = per_class * _focal_factor(log_posterior, terms.focal_gamma)
    per_example = -per_class.sum(dim=1)
    cross_entropy = per_example.mean() if totals is None else per_example.sum() / totals.rows
    low, high = ATTRIBUTE_RANGE
    error = ((attributes - labels.attributes) / (high - low)).square()
    error = torch.where(labels.rated, error, torch.zeros_like(error))
    ratings = labels.rated.sum().clamp(min=1) if totals is None else max(1, totals.rated)
    mean_error = error.sum() / ratings
    return terms.cross_entropy * cross_entropy + terms.attributes * mean_error


def smoothed(classes: Tensor, class_bias: Tensor, smoothing: float) -> Tensor:
    """(1 - e) t + e u: soft targets `[B, C]` mixed with the uniform distribution over the classes of bias 0."""
    if not smoothing:
        return classes
    compared = (class_bias == 0).to(classes.dtype)
    return (1.0 - smoothing) * classes + smoothing * compared / compared.sum()


def _focal_factor(log_posterior: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma of every class, `[B, C]`."""
    rest = -torch.expm1(log_posterior)
    # The slope of rest^gamma at rest = 0 is infinite for gamma < 1; it meets log p = 0 there, and the product is not a number.
    return rest.clamp(min=torch.finfo(rest.dtype).tiny).pow(gamma)


def class_weights(
    targets: np.ndarray[tuple[int, int], np.dtype[np.float32]], exponent: float = CLASS_WEIGHT_EXPONENT
) -> Tensor:
    """alpha_c = (N / (|C| f_c))^exponent from soft counts f_c of `targets [N, C]`; 1 for a class that never occurs."""
    counts = targets.sum(axis=0)
    present = counts > 0
    weights = np.ones(len(counts), np.float32)
    weights[present] = (len(targets) / (present.sum() * counts[present])) ** exponent
    return torch.from_numpy(weights)


@dataclass(frozen=True, slots=True)
class Mixing:
    """One draw of Manifold MixUp: each row's partner `int64 [B]`, and its own share `float32 [B, 1]`.

    It is drawn apart from its use, so that a step knows how many ratings all of its batches keep.
    """

    partner: Tensor
    share: Tensor

    def values(self, values: Tensor) -> Tensor:
        """Rows `[B, D]`, each mixed with its partner."""
        share, partner = self.share.to(values.device), self.partner.to(values.device)
        return share * values + (1.0 - share) * values[partner]

    def labels(self, labels: Labels) -> Labels:
        """Labels mixed in the same way; an attribute stays rated only where both rows have it."""
        partner = self.partner.to(labels.rated.device)
        return Labels(self.values(labels.classes), self.values(labels.attributes), labels.rated & labels.rated[partner])


def draw_mixing(rows: int, alpha: float, generator: np.random.Generator) -> Mixing:
    """Partners and shares of a batch of `rows`, lambda ~ Beta(a, a) per sample.

    Source: Verma et al. (2019), "Manifold Mixup", arXiv:1806.05236.
    """
    partner = torch.from_numpy(generator.permutation(rows))
    return Mixing(partner, torch.from_numpy(generator.beta(alpha, alpha, (rows, 1)).astype(np.float32)))
