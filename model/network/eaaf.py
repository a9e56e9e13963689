"""EAAF, emotion-aware adaptive fusion: how much of each modality, and of what they have in common, a fused vector holds.

Of modalities h_1 .. h_N and the products h_mn = h_m * h_n of every two of them, and g = [h_1 .. h_N; all h_mn]:

    free      h = sum_m a_m * h_m + sum_mn beta_mn h_mn,        a_m = sigmoid(W_m g + b_m) in R^D,  beta learned
    shares    h = sum_m s_m u(h_m) + sum_mn s_mn u(h_mn),       s = softmax(MLP(u(g))), one number each, u(h) = h / rms(h)

With shares, all terms have one length before they are weighed, so that "0.76 audio" is a share of the fused vector and not
of a number that multiplies something long or short. A modality that an utterance does not have (no transcript) has share 0,
and so have its products. Scores are bounded (ours): without a bound the modality that is learned first takes all of the share,
others get no gradient any more, and they are never learned (docs/LOG.md).

Source: the description of emotion-aware adaptive fusion that the project was asked to build, for two modalities: with
N = 2 both forms are the ones there, one product and one beta included.

Shapes: B = batch, N = modalities, S = N + N (N - 1) / 2 terms, D = model width.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from model.network.enc import MASKED_SCORE

LARGEST_SCORE = 2.0
"""A share is at most exp(4) = 55 times another of the same utterance."""
QUIET = 1e-6
"""Added to mean squares: a vector of zeros stays one."""


def terms_of(modalities: Sequence[Tensor]) -> list[Tensor]:
    """N vectors `[B, D]` and the products of every two: S of them."""
    return [*modalities, *(a * b for a, b in combinations(modalities, 2))]


def presence_of(present: Tensor) -> Tensor:
    """Which modalities an utterance has, `bool [B, N]` -> which terms, `[B, S]`."""
    columns = list(present.unbind(dim=1))
    return torch.stack([*columns, *(a & b for a, b in combinations(columns, 2))], dim=1)


class FreeGates(nn.Module):
    """A gate per modality and feature, and a learned weight per product."""

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()
        self.modalities = modalities
        pairs = modalities * (modalities - 1) // 2
        self.gates = nn.Linear((modalities + pairs) * dim, modalities * dim)
        self.beta = nn.Parameter(torch.full((pairs,), 0.1))

    def forward(self, modalities: Sequence[Tensor]) -> Tensor:
        """N vectors `[B, D]` -> `[B, D]`."""
        terms = terms_of(modalities)
        gates = torch.sigmoid(self.gates(torch.cat(terms, dim=1))).chunk(self.modalities, dim=1)
        gated = [gate * term for gate, term in zip(gates, terms, strict=False)]
        products = [beta * term for beta, term in zip(self.beta.unbind(), terms[self.modalities :], strict=True)]
        return torch.stack([*gated, *products]).sum(dim=0)


class Shares(nn.Module):
    """One share per modality and per product, which sum to 1."""

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()
        terms = modalities * (modalities + 1) // 2
        self.hidden = nn.Linear(terms * dim, dim)
        self.scores = nn.Linear(dim, terms)

    def forward(self, modalities: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """N vectors `[B, D]`, `bool [B, N]` -> fused `[B, D]`, shares `[B, S]` in the order of `terms_of`."""
        units = [_unit(term) for term in terms_of(modalities)]
        scores = self.scores(torch.relu(self.hidden(torch.cat(units, dim=1))))
        scores = LARGEST_SCORE * torch.tanh(scores / LARGEST_SCORE)
        absent = (~presence_of(present)).to(scores.dtype) * MASKED_SCORE
        shares = torch.softmax(scores + absent, dim=1)
        return (shares.unsqueeze(2) * torch.stack(units, dim=1)).sum(dim=1), shares


def _unit(x: Tensor) -> Tensor:
    """`[B, D]` with a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + QUIET)
