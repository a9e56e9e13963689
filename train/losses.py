"""The multitask loss of stages 1 to 3, class weights, and Manifold MixUp.

Source: MEDUSA, arXiv:2506.09556, section 2.2: 1.5 * cross-entropy + 0.4 * mean squared error.

Shapes: B = batch, C = 8 classes, A = 3 attributes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.labels import ATTRIBUTE_RANGE

CROSS_ENTROPY_WEIGHT = 1.5
ATTRIBUTE_WEIGHT = 0.4


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


def multitask_loss(
    logits: Tensor, attributes: Tensor, labels: Labels, class_weights: Tensor, class_bias: Tensor
) -> Tensor:
    """Scalar loss of one batch.

    Args:
        logits: `[B, C]`.
        attributes: predictions `[B, A]` in 1..7.
        labels: the targets.
        class_weights: `[C]`, 1 everywhere for an unweighted loss.
        class_bias: `[C]`, 0 for trained classes and a large negative number for others.
    """
    log_posterior = torch.log_softmax(logits + class_bias, dim=1)
    cross_entropy = -(class_weights * labels.classes * log_posterior).sum(dim=1).mean()
    low, high = ATTRIBUTE_RANGE
    error = ((attributes - labels.attributes) / (high - low)).square()
    error = torch.where(labels.rated, error, torch.zeros_like(error))
    mean_error = error.sum() / labels.rated.sum().clamp(min=1)
    return CROSS_ENTROPY_WEIGHT * cross_entropy + ATTRIBUTE_WEIGHT * mean_error


def class_weights(targets: np.ndarray[tuple[int, int], np.dtype[np.float32]], exponent: float = 0.5) -> Tensor:
    """alpha_c = (N / (|C| f_c))^exponent from soft counts f_c of `targets [N, C]`; 1 for a class that never occurs."""
    counts = targets.sum(axis=0)
    present = counts > 0
    weights = np.ones(len(counts), np.float32)
    weights[present] = (len(targets) / (present.sum() * counts[present])) ** exponent
    return torch.from_numpy(weights)


def mixup(x: Tensor, labels: Labels, alpha: float, generator: np.random.Generator) -> tuple[Tensor, Labels]:
    """Manifold MixUp: mixes each row of x `[B, D]` and its labels with another row's, lambda ~ Beta(a, a) per sample.

    An attribute stays rated only where both rows have it.

    Source: Verma et al. (2019), "Manifold Mixup", arXiv:1806.05236.
    """
    order = torch.from_numpy(generator.permutation(len(x)))
    share = torch.from_numpy(generator.beta(alpha, alpha, (len(x), 1)).astype(np.float32))

    def mix(values: Tensor) -> Tensor:
        return share * values + (1.0 - share) * values[order]

    mixed = Labels(mix(labels.classes), mix(labels.attributes), labels.rated & labels.rated[order])
    return mix(x), mixed
