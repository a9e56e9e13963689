"""Losses that draw the fused representations of a labelled corpus and of unlabelled audio together.

    CORAL   covariances alike                     Sun & Saenko (2016), "Deep CORAL", arXiv:1607.01719
    MMD     distributions alike under kernels     Long et al. (2015), "Deep Adaptation Networks", arXiv:1502.02791
    DANN    a classifier cannot tell them apart   Ganin et al. (2016), "Domain-Adversarial Training", arXiv:1505.07818

Shapes: B = batch of the source, T = batch of the target, D = width of the fused representation.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.member import Member
from train.transfer.start import MakeAuxiliary, Rows
from train.transfer.unlabelled import Unlabelled

Method = Literal["coral", "mmd", "dann"]
_BANDWIDTHS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernels, in units of the mean squared distance of the two batches."""
_HIDDEN: Final = 64
"""Width of the network that tells the domains apart."""
_STEEPNESS: Final = 10.0
"""Of the reversed gradient's way from 0 to 1 over a stage: gamma of the DANN paper."""


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Squared Frobenius distance of the covariances of `[B, D]` and `[T, D]`, over 4 D^2."""
    return (_covariance(source) - _covariance(target)).square().sum() / (4 * source.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of `[B, D]` and `[T, D]`, unbiased, mean over several Gaussian kernels.

    Their widths follow the mean squared distance of the two batches together, without gradient.
    """
    joined = torch.cat([source, target])
    distances = (joined.unsqueeze(0) - joined.unsqueeze(1)).square().sum(dim=2)
    count = len(joined)
    typical = (distances.detach().sum() / (count * (count - 1))).clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-distances / (width * typical)) for width in _BANDWIDTHS]).mean(dim=0)
    b, t = len(source), len(target)
    within_source = (kernel[:b, :b].sum() - b) / (b * (b - 1))  # without the distance of a row to itself
    within_target = (kernel[b:, b:].sum() - t) / (t * (t - 1))
    return within_source + within_target - 2 * kernel[:b, b:].mean()


class _Reversed(torch.autograd.Function):
    """The identity, with the gradient times -strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reversed_gradient(x: Tensor, strength: float) -> Tensor:
    """`x`; what flows back is multiplied by `-strength`."""
    found: Tensor = _Reversed.apply(x, strength)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return found


class Discriminator(nn.Module):
    """Tells the source (1) from the target (0) by the fused representation.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))

    def forward(self, source: Tensor, target: Tensor, strength: float) -> Tensor:
        """Its own cross-entropy, which it minimises while the representation is driven to maximise it."""
        logits = self.layers(reversed_gradient(torch.cat([source, target]), strength)).squeeze(1)
        truth = torch.cat([torch.ones(len(source)), torch.zeros(len(target))]).to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, truth)


class Alignment(nn.Module):
    """The alignment of each batch of the source with a random batch of the target of the same size.

    Args:
        member: its width decides the discriminator's.
        target: what is aligned with; new draws of it at every step.
        method: which distance.
        weight: of the distance in the loss.
        seed: of the draws and of the discriminator.
        steps: of the stage, over which DANN's reversed gradient rises.
    """

    def __init__(
        self, member: Member, target: Unlabelled, method: Method, weight: float, seed: int, steps: int
    ) -> None:
        super().__init__()
        self._target, self._method, self._weight = target, method, weight
        self._rng, self._steps, self._taken = np.random.default_rng([seed, 1]), max(1, steps), 0
        width = member.spec.dim * (len(member.spec.modalities) if member.spec.fusion == "late" else 1)
        with torch.random.fork_rng(devices=[]):  # the stage draws as it would without a discriminator
            torch.manual_seed(seed)
            self.discriminator = Discriminator(width) if method == "dann" else None

    def forward(self, member: Member, x: Tensor, represent: Callable[[Rows], Tensor]) -> Tensor:
        """The weighted distance of `x [B, D]` from as many utterances of the target."""
        if len(x) < 2:
            return x.new_zeros(())  # a single row has no spread
        rows = self._rng.choice(len(self._target), len(x), replace=len(self._target) < len(x))
        other = represent(self._target.subset(rows))
        if self.discriminator is not None:
            progress = min(1.0, self._taken / self._steps)
            self._taken += 1
            strength = 2.0 / (1.0 + float(np.exp(-_STEEPNESS * progress))) - 1.0
            found: Tensor = self.discriminator(x, other, strength)
            return self._weight * found
        return self._weight * (coral if self._method == "coral" else mmd)(x, other)


def aligning(target: Unlabelled, method: Method, weight: float) -> MakeAuxiliary:
    """Makes the alignment of a member with unlabelled audio, as it hears it.

    Raises:
        ValueError: if there are fewer than two utterances.
    """
    if len(target) < 2:
        raise ValueError(f"aligning needs two utterances of the target at least, got {len(target)}")
    return lambda member, seed, steps: Alignment(member, target, method, weight, seed, steps)
