"""emotion2vec's audio encoder: convolutions, a positional convolution, and blocks whose attention fades with distance.

Of its training nothing is here: no masks, no decoder, no head. `model.network.emotion2vec_folder` brings the weights.

Shapes: B = batch, T = samples at 16 kHz, C = channels of the front end, F = frames (20 ms), X = extra tokens, N = X + F,
H = heads, d = width.

Source: Ma et al., "emotion2vec", arXiv:2312.15185, section 3; Baevski et al., "data2vec 2.0", arXiv:2212.07525, section 3;
Press et al., "ALiBi", arXiv:2108.12409, section 3.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS: Final = ((10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2)
"""Kernel and stride of the front end's layers, the same in every published size: 25 ms a frame, 20 ms apart."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a checkpoint; the defaults are those of the base models.

    Attributes:
        dim: width d.
        heads: attention heads H; divides `dim`.
        feed_forward: width of a block's feed-forward network.
        prenet: blocks before those that follow.
        blocks: blocks behind them.
        channels: width C of the front end.
        positions: layers of the positional convolution.
        position_kernel: frames that one of them hears; odd.
        position_groups: groups of its channels.
        extra_tokens: learned tokens before the frames.
    """

    dim: int = 768
    heads: int = 12
    feed_forward: int = 3072
    prenet: int = 4
    blocks: int = 8
    channels: int = 512
    positions: int = 5
    position_kernel: int = 19
    position_groups: int = 16
    extra_tokens: int = 10


def distance_bias(steps: int, heads: int, device: torch.device | None = None) -> Tensor:
    """What ALiBi adds to attention scores, symmetric in time: `float32 [H, steps, steps]`, 0 on the diagonal.

    Slopes are a geometric series for a power of two heads; else those of the next smaller power, and every other one of the
    next larger.
    """
    places = torch.arange(steps, device=device)
    distance = (places[:, None] - places[None, :]).abs()
    return -torch.tensor(_slopes(heads), device=device)[:, None, None] * distance


def _slopes(heads: int) -> list[float]:
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (n + 1) / power) for n in range(power)]
    return slopes if power == heads else slopes + _slopes(2 * power)[::2][: heads - power]


class _Attention(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.heads = layout.heads
        self.qkv = nn.Linear(layout.dim, 3 * layout.dim)
        self.proj = nn.Linear(layout.dim, layout.dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`[B, N, d]` and the scores' bias `[B, H, N, N]`, -inf for keys that are padding -> `[B, N, d]`."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        heard = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        mixed: Tensor = self.proj(heard.transpose(1, 2).flatten(2))
        return mixed


class _FeedForward(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.fc1 = nn.Linear(layout.dim, layout.feed_forward)
        self.fc2 = nn.Linear(layout.feed_forward, layout.dim)

    def forward(self, x: Tensor) -> Tensor:
        widened: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return widened


class _Block(nn.Module):
    """A Transformer layer with its norms behind the sums."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(layout.dim), nn.LayerNorm(layout.dim)
        self.attn, self.mlp = _Attention(layout), _FeedForward(layout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x, bias))
        normed: Tensor = self.norm2(x + self.mlp(x))
        return normed


class _FrontLayer(nn.Module):
    def __init__(self, read: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(read, channels, kernel, stride, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, T]`; each frame is normalised by itself, so that none hears another's padding."""
        return functional.gelu(self.norm(self.convolution(x).transpose(1, 2)).transpose(1, 2))


class Emotion2Vec(nn.Module):
    """emotion2vec's audio encoder: waveforms `float32 [B, T]`, standardised -> the last block's output `float32 [B, F, d]`.

    Padding and neighbours change no frame: the positional convolutions, five in a row, each find zeros where an utterance
    has ended, as they do where the batch ends, and attention does not see padding.

    Raises:
        ValueError: if the sizes cannot be built.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        if layout.dim % layout.heads or layout.dim % layout.position_groups or not layout.position_kernel % 2:
            raise ValueError(
                f"heads and position_groups divide dim, and position_kernel is odd, got {layout.heads}, "
                f"{layout.position_groups}, {layout.dim} and {layout.position_kernel}"
            )
        self.layout = layout
        read = (1, *[layout.channels] * (len(CONVOLUTIONS) - 1))
        self.front_end = nn.ModuleList(
            _FrontLayer(width, layout.channels, *shape) for width, shape in zip(read, CONVOLUTIONS, strict=True)
        )
        self.projection = nn.Sequential(nn.LayerNorm(layout.channels), nn.Linear(layout.channels, layout.dim))
        self.positions = nn.ModuleList(
            nn.Conv1d(
                layout.dim,
                layout.dim,
                layout.position_kernel,
                padding=layout.position_kernel // 2,
                groups=layout.position_groups,
            )
            for _ in range(layout.positions)
        )
        self.extra_tokens = nn.Parameter(torch.zeros(1, layout.extra_tokens, layout.dim))
        self.alibi_scale = nn.Parameter(torch.ones(1, 1, layout.heads, 1, 1))
        self.prenet_norm = nn.LayerNorm(layout.dim)
        self.prenet = nn.ModuleList(_Block(layout) for _ in range(layout.prenet))
        self.blocks = nn.ModuleList(_Block(layout) for _ in range(layout.blocks))

    def forward(self, audio: Tensor, frames: Tensor) -> Tensor:
        """The last block's output `float32 [B, F, d]`; frames beyond an utterance's `frames`, `int64 [B]`, mean nothing."""
        x = audio.unsqueeze(1)
        for layer in self.front_end:
            x = layer(x)
        x = self.projection(x.transpose(1, 2))
        kept = torch.arange(x.shape[1], device=x.device) < frames.unsqueeze(1)
        x = x + self._place(x, kept)
        x = torch.cat([self.extra_tokens.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        bias = self._bias(kept)
        x = self.prenet_norm(x)
        for block in (*self.prenet, *self.blocks):
            x = block(x, bias)
        hidden: Tensor = x[:, self.layout.extra_tokens :].float()
        return hidden

    def _place(self, x: Tensor, kept: Tensor) -> Tensor:
        """What the positional convolutions hear: `[B, F, d]` -> `[B, F, d]`."""
        x = x.transpose(1, 2)
        for convolution in self.positions:
            heard = convolution(x * kept.unsqueeze(1)).transpose(1, 2)
            x = functional.gelu(functional.layer_norm(heard, (self.layout.dim,))).transpose(1, 2)
        return x.transpose(1, 2)

    def _bias(self, kept: Tensor) -> Tensor:
        """Bias of all scores `float32 [B, H, N, N]`; extra tokens are as near to every frame as it is to itself."""
        extra = self.layout.extra_tokens
        bias = distance_bias(kept.shape[1], self.layout.heads, kept.device) * self.alibi_scale[0, 0].clamp_min(0.0)
        heard = functional.pad(kept, (extra, 0), value=True)[:, None, None, :]
        return functional.pad(bias, (extra, 0, extra, 0)).unsqueeze(0).masked_fill(~heard, -math.inf)
