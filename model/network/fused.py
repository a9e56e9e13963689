"""What a member makes of an utterance before its heads, and the views by which a contrastive loss compares modalities.

Shapes: B = batch, N = modalities, S = shares, P = width of a view, D = model width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fused(NamedTuple):
    """A batch of utterances between a member's encoders and its heads.

    Attributes:
        x: what the heads read, `[B, D]`; with late fusion `[B, N D]`.
        views: of length 1, `[B, N, P]`; None where the member has none.
        shares: of the modalities and then of their products in the fused vector, `[B, S]`, rows sum to 1; None where the
            member has none.
    """

    x: Tensor
    views: Tensor | None = None
    shares: Tensor | None = None


class Views(nn.Module):
    """A projection of each modality's own vector, to unit length. Only training reads them.

    The vectors are those of single modalities, from before any of them has seen another: what is compared with the others
    must not be made of them.
    """

    def __init__(self, modalities: Sequence[str], dim: int, width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({name: nn.Linear(dim, width) for name in modalities})

    def forward(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """Modality -> `[B, D]`, to `[B, N, P]`."""
        projected = [projection(pooled[name]) for name, projection in self.projections.items()]
        return F.normalize(torch.stack(projected, dim=1), dim=2)
