"""A layer in which one modality attends to the steps of all others.

    x' = x + W_o attention(queries: norm(x), keys and values: norm(others))
    y  = x' + feed-forward(norm(x'))

Others are joined over time, so that any number of modalities has one softmax; of two, each attends to the other. With
guidance, `model.network.vga` is added to the scores.

Shapes: B = batch, T = steps of this modality, K = steps of all others together, D = model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.dropout import dropout
from model.network.enc import MASKED_SCORE
from model.network.vga import VadGuide


class CrossLayer(nn.Module):
    """Cross-attention and feed-forward, each behind a norm and around a residual.

    Keys have no bias: a softmax does not see what all its scores share.
    """

    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float, *, guided: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_norm = nn.LayerNorm(dim)
        self.key_norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.guide = VadGuide(dim) if guided else None
        self.attention_out = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, feed_forward)
        self.contract = nn.Linear(feed_forward, dim)

    def forward(self, x: Tensor, others: Tensor, others_mask: Tensor) -> Tensor:
        """`[B, T, D]`, `[B, K, D]`, `[B, K]` -> `[B, T, D]`; where no key is real, nothing is attended to."""
        x = x + self._drop(self._attend(self.query_norm(x), self.key_norm(others), others_mask))
        hidden = self._drop(F.gelu(self.expand(self.feed_forward_norm(x))))
        return x + self._drop(self.contract(hidden))

    def _attend(self, x: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(others)), self._split(self.v(others))
        bias = (~mask).to(x.dtype)[:, None, None, :] * MASKED_SCORE
        if self.guide is not None:
            bias = bias + self.guide(x, others)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        # Without a real key the softmax spreads over padding, and its result would be the padding's.
        out: Tensor = self.attention_out(attended) * mask.any(dim=1).to(x.dtype)[:, None, None]
        return out

    def _split(self, x: Tensor) -> Tensor:
        return torch.stack(x.chunk(self.heads, dim=2), dim=1)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)
