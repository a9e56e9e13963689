"""ENC: a projection, Transformer layers, masked mean pooling. The building block of DeepSER.

Source: MEDUSA, arXiv:2506.09556, section 2.1. Pre-normalisation and GELU are our choices; the paper is silent. Guided layers
are ours too: `model.network.vga` in the place of plain attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.dropout import dropout
from model.network.vga import VadGuide

MASKED_SCORE = -1e4
"""Added to attention scores of padded keys. Finite, so that a row without any real key (an empty transcript) gives
numbers that its mask then removes, and not NaN; in float32 and float16 its softmax weight is exactly zero."""


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real steps: `[B, T, D]`, `[B, T]` -> `[B, D]`; zero where a row has none."""
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and around a residual: `[B, T, D]` -> `[B, T, D]`."""

    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float, *, guided: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, feed_forward)
        self.contract = nn.Linear(feed_forward, dim)
        self.guide = VadGuide(dim) if guided else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """One layer on `[B, T, D]` with mask `[B, T]`."""
        x = x + self._drop(self._attend(self.attention_norm(x), mask))
        hidden = self._drop(F.gelu(self.expand(self.feed_forward_norm(x))))
        return x + self._drop(self.contract(hidden))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        bias = (~mask).to(x.dtype)[:, None, None, :] * MASKED_SCORE
        if self.guide is not None:
            bias = bias + self.guide(x, x)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.attention_out(attended.transpose(1, 2).flatten(2))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Enc(nn.Module):
    """x = W2 relu(W1 x), then the layers, then the mean over real steps."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        heads: int,
        layers: int,
        feed_forward: int,
        dropout: float,
        *,
        guided: bool = False,
    ) -> None:
        super().__init__()
        self.w1 = nn.Linear(in_dim, dim)
        self.w2 = nn.Linear(dim, dim)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, heads, feed_forward, dropout, guided=guided) for _ in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """`[B, T, in_dim]` -> (every layer's output `[B, T, D]`, pooled last layer `[B, D]`)."""
        x = self.w2(torch.relu(self.w1(x)))
        outputs: list[Tensor] = []
        for layer in self.layers:
            x = layer(x, mask)
            outputs.append(x)
        return outputs, masked_mean(x, mask)
