"""Whisper's encoder with its hidden states, for input of any length up to 30 s.

CTranslate2 and `transformers` compute the same encoder, but the one gives its last state alone and the other insists on
30 s of input. What emotion needs lies in the middle layers as much as at the end (docs/LOG.md, 2026-11-21).

Shapes: B = batch, M = mel bands, F = encoder frames (20 ms; two mel frames each), D = encoder width, S = states taken.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356, section 2.2.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.whisper_weights import EncoderWeights, read_encoder_weights
from model.sources import resolve_encoder
from model.spec import EncoderSpec


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.attention_norm(x)).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        hidden: Tensor = self.contract(F.gelu(self.expand(self.feed_forward_norm(x))))
        return x + hidden


class WhisperEncoder(nn.Module):
    """Mel frames to hidden states, the last one last: what the decoder reads.

    Args:
        weights: of a trained encoder.
        states: which hidden states: 0 is the input of the first layer, n the output of layer n; the last is that of the
            final norm. In rising order, and the last one is among them.

    Raises:
        ValueError: if the states are not so.
    """

    positions: Tensor

    def __init__(self, weights: EncoderWeights, states: Sequence[int]) -> None:
        super().__init__()
        if list(states) != sorted(set(states)) or not states or states[0] < 0 or states[-1] != weights.layers:
            raise ValueError(
                f"hidden states rise from 0 and end with {weights.layers}, the last of this encoder, got {list(states)}"
            )
        self.states = tuple(states)
        dim, bands, _ = weights.tensors["conv1.weight"].shape
        self.dim, self.bands = int(dim), int(bands)
        with torch.device("meta"):  # no memory and no random numbers for what is replaced at once: 2.5 GB in large-v3
            self.conv1 = nn.Conv1d(self.bands, self.dim, kernel_size=3, padding=1)
            self.conv2 = nn.Conv1d(self.dim, self.dim, kernel_size=3, stride=2, padding=1)
            self.layers = nn.ModuleList(_Layer(self.dim, weights.heads) for _ in range(weights.layers))
            self.norm = nn.LayerNorm(self.dim)
            self.register_buffer("positions", torch.empty(weights.tensors["positions"].shape))
        self.load_state_dict(weights.tensors, assign=True)
        self.eval().requires_grad_(requires_grad=False)

    @property
    def max_frames(self) -> int:
        """The longest input in encoder frames (30 s)."""
        return len(self.positions)

    def forward(self, mels: Tensor) -> Tensor:
        """`float32 [B, M, 2 F]` -> `float32 [B, F, S, D]`."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mels)))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        taken = [x] if 0 in self.states else []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number == len(self.layers):
                x = self.norm(x)
            if number in self.states:
                taken.append(x)
        return torch.stack(taken, dim=2)


def load_whisper_encoder(encoder: EncoderSpec) -> WhisperEncoder:
    """The network of an encoder of kind "whisper-onnx".

    Raises:
        SourceError: if no source has its weights.
        WeightsError: if they are no Whisper encoder's.
        ValueError: if the encoder has no such states.
    """
    return WhisperEncoder(read_encoder_weights(resolve_encoder(encoder)), encoder.states)


class TorchHiddenStates:
    """A `WhisperEncoder` on arrays: implements `model.whisper.HiddenStates`."""

    def __init__(self, network: WhisperEncoder) -> None:
        self._network = network

    def __call__(self, mels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`float32 [B, M, 2 F]` -> `float32 [B, F, S, D]`."""
        with torch.no_grad():
            found: npt.NDArray[np.float32] = self._network(torch.from_numpy(mels)).numpy()
        return found
