"""VGA, VAD-guided attention: a step attends to steps that lie near it in a learned space of three axes.

    A = softmax(Q K^T / sqrt(d_k) + lambda M),   M_ij = -||v_i - v_j||_2,   v = P x in R^3

v_i is a projection of what query i is made of, v_j one of what key j is made of; both projections and lambda are learned,
for arousal, valence and dominance are nobody's input. This module is lambda M: a bias that any attention can add.

Source: the description of VAD-guided cross-attention that the project was asked to build. The code published with it
attends over ONE pooled vector per modality: a softmax over a single key is 1 whatever its score, so lambda and both
projections there receive no gradient and change nothing. Here queries and keys are sequences of steps.

Shapes: B = batch, Q = queries, K = keys, D = model width.
"""

import torch
from torch import Tensor, nn

AXES = 3
"""Arousal, valence, dominance."""
NEAREST = 1e-12
"""Added to squared distances: the root's slope is then 0 at distance 0, and not infinite. It moves no distance by more
than 1e-6."""


class VadGuide(nn.Module):
    """lambda M for queries and keys of width `dim`.

    The keys' projection has no bias: a distance sees only the difference of two.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, AXES)
        self.key = nn.Linear(dim, AXES, bias=False)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """`[B, Q, D]`, `[B, K, D]` -> what is added to attention scores, `[B, 1, Q, K]`."""
        # Differences, not |a|^2 + |b|^2 - 2 ab: that loses what near points differ by.
        apart = self.query(queries).unsqueeze(2) - self.key(keys).unsqueeze(1)
        distance = torch.sqrt(apart.square().sum(dim=3) + NEAREST)
        return (-self.weight * distance).unsqueeze(1)
