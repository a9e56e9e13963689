"""The second family of members: each modality attends to the others, and learned shares decide what is kept of each.

    per modality m     steps_m, pooled_m = ENC_m(x_m)
    cross-attention    steps_m = layer_m(steps_m; steps of all others), for all m at once, several times
    fusion             h_m = mean over time of steps_m;  h = EAAF(h_1 .. h_N), or all h_m side by side
    representation     x  = W h
    heads              as DeepSER's: logits = W_c relu(x);  attributes = 1 + 6 sigmoid(W_r relu(x))

`model.network.vga` guides the attention, `model.network.eaaf` weighs the modalities, and a contrastive loss (`train.micl`)
draws the modalities' pooled vectors together; each can be switched off, which gives the rows of an ablation.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.labels import ATTRIBUTE_RANGE, ATTRIBUTES, CLASSES
from model.network.cross_attention import CrossLayer
from model.network.deepser import FrameStack
from model.network.eaaf import FreeGates, Shares
from model.network.enc import Enc, masked_mean
from model.network.fused import Fused, Views
from model.spec import EncoderSpec, MemberSpec


class CrossFusion(nn.Module):
    """One ensemble member of the family "vga".

    Args:
        spec: its sizes and modalities.
        encoders: the description of every modality it reads.
    """

    def __init__(self, spec: MemberSpec, encoders: Mapping[str, EncoderSpec]) -> None:
        super().__init__()
        self.spec = spec
        dim, sizes = spec.dim, (spec.dim, spec.heads, spec.layers, spec.feed_forward, spec.dropout)
        inputs = {name: encoders[name] for name in spec.modalities}
        self.stacks = nn.ModuleDict(
            {name: FrameStack(e.dim, e.stack, spec.input_dropout) for name, e in inputs.items()}
        )
        self.encs = nn.ModuleDict({name: Enc(e.dim * e.stack, *sizes) for name, e in inputs.items()})
        guided = spec.attention == "vad-guided"
        self.crossings = nn.ModuleList(
            nn.ModuleDict(
                {n: CrossLayer(dim, spec.heads, spec.feed_forward, spec.dropout, guided=guided) for n in inputs}
            )
            for _ in range(spec.layers)
        )
        self.gates: FreeGates | Shares | None = None
        if spec.gates != "none":
            self.gates = (FreeGates if spec.gates == "free" else Shares)(dim, len(inputs))
        self.join = nn.Linear(dim if self.gates else dim * len(inputs), dim)
        self.classifier = nn.Linear(dim, len(CLASSES))
        self.regressor = nn.Linear(dim, len(ATTRIBUTES))
        self.views = Views(spec.modalities, dim, spec.contrast) if spec.contrast else None

    def forward(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`{modality: [B, F, d]}`, `{modality: bool [B, F]}` -> logits `[B, C]`, attributes `[B, A]` in 1..7."""
        return self.classify(self.represent(frames, masks))

    def represent(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """The fused representation x, `[B, D]`."""
        return self.fuse(frames, masks).x

    def fuse(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Fused:
        """x, views and shares of a batch."""
        inputs = {name: stack(frames[name], masks[name]) for name, stack in self.stacks.items()}
        encoded = {name: enc(*inputs[name]) for name, enc in self.encs.items()}
        step_masks = {name: mask for name, (_, mask) in inputs.items()}
        steps = self._cross({name: layers[-1] for name, (layers, _) in encoded.items()}, step_masks)
        modalities = [masked_mean(steps[name], mask) for name, mask in step_masks.items()]
        present = torch.stack([mask.any(dim=1) for mask in step_masks.values()], dim=1)
        fused, shares = self._gated(modalities, present)
        views = self.views({name: pool for name, (_, pool) in encoded.items()}) if self.views else None
        return Fused(self.join(fused), views, shares)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heads on x as `represent` gives it: logits `[B, C]` and attributes `[B, A]`."""
        active = torch.relu(x)
        low, high = ATTRIBUTE_RANGE
        return self.classifier(active), low + (high - low) * torch.sigmoid(self.regressor(active))

    def _cross(self, steps: dict[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = self.spec.modalities
        others = {name: [other for other in names if other != name] for name in names}
        joined = {name: torch.cat([masks[other] for other in rest], dim=1) for name, rest in others.items()}
        for crossing in self.crossings:
            assert isinstance(crossing, nn.ModuleDict)
            heard = {name: torch.cat([steps[other] for other in rest], dim=1) for name, rest in others.items()}
            steps = {name: layer(steps[name], heard[name], joined[name]) for name, layer in crossing.items()}
        return steps

    def _gated(self, modalities: list[Tensor], present: Tensor) -> tuple[Tensor, Tensor | None]:
        match self.gates:
            case Shares():
                fused, shares = self.gates(modalities, present)
                return fused, shares
            case FreeGates():
                return self.gates(modalities), None
            case _:
                return torch.cat(modalities, dim=1), None
