"""DeepSER: deep fusion of any number of modalities.

    per modality m     h1_m, h2_m, pooled_m = ENC_m(x_m)
    fusion 1           f1 = ENC over TIME of [h1_m for all m]
    fusion 2           f2 = ENC over TIME of [h2_m for all m; last layer of f1]         (and so on for more layers)
    representation     x  = W [pooled_m for all m; pooled f2]
    heads              logits = W_c relu(x);  attributes = 1 + 6 sigmoid(W_r relu(x))

Late fusion, which deep fusion is compared with, has a network per modality and nothing between them:

    x_m = W_m pooled_m;  logits = mean over m of W_c,m relu(x_m);  attributes = 1 + 6 sigmoid(mean of W_r,m relu(x_m))

The attention of fusion ENCs can be guided (`model.network.vga`).

Manifold MixUp acts between `represent` and `classify`; it lives in the training step, so that `forward`, which is what
gets exported, holds no randomness.

Source: MEDUSA, arXiv:2506.09556, section 2.1.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.labels import ATTRIBUTE_RANGE, ATTRIBUTES, CLASSES
from model.network.dropout import dropout
from model.network.enc import Enc
from model.network.fused import Fused, Views
from model.spec import EncoderSpec, MemberSpec


class FrameStack(nn.Module):
    """Standardises frames and joins `stack` of them into one step.

    `[B, F, d]`, `[B, F]` -> `[B, F / stack, d * stack]`, `[B, F / stack]`; F is a multiple of `stack`. Padded frames
    become zeros (the mean), so that what the padding held never matters; a step is real if its first frame is. In training,
    an utterance loses each feature, in all of its frames, with the probability `dropout`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, stack: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stack = stack
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fixes mean and standard deviation `[d]` of the training frames."""
        self.mean.copy_(mean)
        self.scale.copy_(1.0 / std.clamp(min=1e-3))

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised steps and their mask."""
        scale = self.scale
        if self.training and self.dropout > 0:
            scale = scale * dropout(torch.ones_like(frames[:, :1]), self.dropout, self.training)
        frames = (frames - self.mean).mul_(scale).mul_(mask.unsqueeze(-1).to(frames.dtype))
        batch, length, width = frames.shape
        steps = frames.reshape(batch, length // self.stack, self.stack * width)
        return steps, mask[:, :: self.stack]


class DeepSER(nn.Module):
    """One ensemble member. With late fusion it has no fusion ENC, and a join and heads per modality.

    Args:
        spec: its sizes and modalities.
        encoders: the description of every modality it reads.
    """

    def __init__(self, spec: MemberSpec, encoders: Mapping[str, EncoderSpec]) -> None:
        super().__init__()
        self.spec = spec
        sizes = (spec.dim, spec.heads, spec.layers, spec.feed_forward, spec.dropout)
        inputs = {name: encoders[name] for name in spec.modalities}
        self.stacks = nn.ModuleDict(
            {name: FrameStack(e.dim, e.stack, spec.input_dropout) for name, e in inputs.items()}
        )
        self.encs = nn.ModuleDict({name: Enc(e.dim * e.stack, *sizes) for name, e in inputs.items()})
        self.views = Views(spec.modalities, spec.dim, spec.contrast) if spec.contrast else None
        if spec.fusion == "late":
            self.joins = nn.ModuleDict({name: nn.Linear(spec.dim, spec.dim) for name in inputs})
            self.classifiers = nn.ModuleDict({name: nn.Linear(spec.dim, len(CLASSES)) for name in inputs})
            self.regressors = nn.ModuleDict({name: nn.Linear(spec.dim, len(ATTRIBUTES)) for name in inputs})
            return
        self.fusions = nn.ModuleList(
            Enc(spec.dim, *sizes, guided=spec.attention == "vad-guided") for _ in range(spec.layers)
        )
        self.join = nn.Linear(spec.dim * (len(inputs) + 1), spec.dim)
        self.classifier = nn.Linear(spec.dim, len(CLASSES))
        self.regressor = nn.Linear(spec.dim, len(ATTRIBUTES))

    def forward(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`{modality: [B, F, d]}`, `{modality: bool [B, F]}` -> logits `[B, C]`, attributes `[B, A]` in 1..7."""
        return self.classify(self.represent(frames, masks))

    def represent(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """The fused representation x, `[B, D]`; with late fusion those of all modalities side by side, `[B, M D]`."""
        return self.fuse(frames, masks).x

    def fuse(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Fused:
        """x and views of a batch."""
        steps = {name: stack(frames[name], masks[name]) for name, stack in self.stacks.items()}
        encoded = {name: enc(*steps[name]) for name, enc in self.encs.items()}
        modality_mask = torch.cat([mask for _, mask in steps.values()], dim=1)
        pooled = [pool for _, pool in encoded.values()]
        views = self.views(dict(zip(encoded, pooled, strict=True))) if self.views else None
        if self.spec.fusion == "late":
            joins = zip(self.joins.values(), pooled, strict=True)
            return Fused(torch.cat([join(pool) for join, pool in joins], dim=1), views)
        fused: tuple[Tensor, Tensor] | None = None
        fused_pool = pooled[0]
        for level, fusion in enumerate(self.fusions):
            streams = [layers[level] for layers, _ in encoded.values()]
            mask = modality_mask
            if fused is not None:
                streams.append(fused[0])
                mask = torch.cat([modality_mask, fused[1]], dim=1)
            layers, fused_pool = fusion(torch.cat(streams, dim=1), mask)
            fused = layers[-1], mask
        return Fused(self.join(torch.cat([*pooled, fused_pool], dim=1)), views)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heads on x as `represent` gives it: logits `[B, C]` and attributes `[B, A]`."""
        logits, ratings = self._heads(torch.relu(x))
        low, high = ATTRIBUTE_RANGE
        return logits, low + (high - low) * torch.sigmoid(ratings)

    def _heads(self, active: Tensor) -> tuple[Tensor, Tensor]:
        if self.spec.fusion == "deep":
            return self.classifier(active), self.regressor(active)
        parts = active.chunk(len(self.joins), dim=1)
        logits = [head(part) for head, part in zip(self.classifiers.values(), parts, strict=True)]
        ratings = [head(part) for head, part in zip(self.regressors.values(), parts, strict=True)]
        return torch.stack(logits).mean(dim=0), torch.stack(ratings).mean(dim=0)
