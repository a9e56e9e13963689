"""The third family of members: heads on what the encoders give, and nothing between.

    pooled_m    mean over time of modality m's standardised frames; 0, the training mean, where an utterance has none.
                Functionals have no time: what tells the whole and its halves apart is kept side by side
    x           [pooled_m for all m]
    heads       logits = W_c x + b_c;  attributes = 1 + 6 sigmoid(W_r x + b_r)

It is the downstream model by which frozen encoders are compared, and with little data hard to beat (docs/LOG.md). It is
fitted, not trained in epochs (`train.linear`).

Source: SUPERB, Yang et al. (2021), arXiv:2105.01051, section 3.1, emotion recognition: mean pooling and a linear layer.

Shapes: B = batch, F = frames, d = width of a frame, D = widths of all modalities together, functionals' three times.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.features import FUNCTIONALS_STEPS
from model.labels import ATTRIBUTE_RANGE, ATTRIBUTES, CLASSES
from model.network.deepser import FrameStack
from model.network.enc import masked_mean
from model.network.fused import Fused
from model.spec import EncoderSpec, MemberSpec, SpecError


class Linear(nn.Module):
    """One ensemble member of the family "linear".

    Its weights begin at zero: with every class as likely as any other, wherever a fit begins.

    Args:
        spec: its modalities.
        encoders: the description of every modality it reads.

    Raises:
        SpecError: if functionals are stacked so that they cannot be read side by side.
    """

    def __init__(self, spec: MemberSpec, encoders: Mapping[str, EncoderSpec]) -> None:
        super().__init__()
        self.spec = spec
        inputs = {name: encoders[name] for name in spec.modalities}
        for encoder in inputs.values():
            if encoder.kind == "functionals" and encoder.stack not in (1, FUNCTIONALS_STEPS):
                raise SpecError(
                    f"encoder {encoder.name!r}: a linear member reads the {FUNCTIONALS_STEPS} steps of functionals side by "
                    f"side, so their stack is 1 or {FUNCTIONALS_STEPS}, got {encoder.stack}"
                )
        steps = {name: FUNCTIONALS_STEPS if e.kind == "functionals" else 1 for name, e in inputs.items()}
        self.stacks = nn.ModuleDict({name: FrameStack(e.dim, steps[name]) for name, e in inputs.items()})
        width = sum(encoder.dim * steps[name] for name, encoder in inputs.items())
        self.classifier = nn.Linear(width, len(CLASSES))
        self.regressor = nn.Linear(width, len(ATTRIBUTES))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`{modality: [B, F, d]}`, `{modality: bool [B, F]}` -> logits `[B, C]`, attributes `[B, A]` in 1..7."""
        return self.classify(self.represent(frames, masks))

    def represent(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """x, `[B, D]`."""
        return self.fuse(frames, masks).x

    def fuse(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Fused:
        """x of a batch."""
        steps = [stack(frames[name], masks[name]) for name, stack in self.stacks.items()]
        return Fused(torch.cat([masked_mean(values, mask) for values, mask in steps], dim=1))

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heads on x as `represent` gives it: logits `[B, C]` and attributes `[B, A]`."""
        low, high = ATTRIBUTE_RANGE
        return self.classifier(x), low + (high - low) * torch.sigmoid(self.regressor(x))
