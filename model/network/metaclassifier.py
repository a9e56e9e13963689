"""The linear meta-classifier over the members' outputs, and the whole ensemble as one network.

Source: MEDUSA, arXiv:2506.09556, section 2.3. One linear layer and nothing behind it: an average of several of them
(the soup) is again one linear layer.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from model.labels import ATTRIBUTE_RANGE, ATTRIBUTES, CLASSES, class_mask
from model.network.fused import Fused
from model.network.member import Member
from model.spec import INTERACTION, EnsembleSpec, MemberSpec

WIDTH = len(CLASSES) + len(ATTRIBUTES)
"""Values per member: eight probabilities and three attributes."""
UNTRAINED_LOGIT = -1e4
"""Logit of a class that was never trained: its softmax probability is exactly zero in float32."""


def attribute_unit(attributes: Tensor) -> Tensor:
    """Attributes from 1..7 to 0..1, the scale of the probabilities beside them."""
    low, high = ATTRIBUTE_RANGE
    return (attributes - low) / (high - low)


class MetaClassifier(nn.Module):
    """`[B, 11 M]` -> logits `[B, 8]` and attributes `[B, 3]` by one linear layer."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH * members, WIDTH)

    def forward(self, member_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, 8]` and attributes `[B, 3]`."""
        low, high = ATTRIBUTE_RANGE
        logits, unit = self.linear(member_outputs).split([len(CLASSES), len(ATTRIBUTES)], dim=1)
        return logits, low + (high - low) * unit


class Ensemble(nn.Module):
    """Members, meta-classifier and calibration as one network: what the daemon runs, once exported.

    Args:
        spec: the ensemble's description.
        members: networks in the order of `spec.members`.
        meta: the souped meta-classifier.
        temperature: divides the logits (1 leaves them as they are).
    """

    class_bias: Tensor
    temperature: Tensor

    def __init__(
        self, spec: EnsembleSpec, members: Sequence[Member], meta: MetaClassifier, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.spec = spec
        self.members = nn.ModuleList(members)
        self.meta = meta
        trained = torch.from_numpy(class_mask(spec.trained_classes))
        self.register_buffer("class_bias", torch.where(trained, 0.0, UNTRAINED_LOGIT))
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities `[B, 8]`, attributes `[B, 3]` in 1..7, and each member's probabilities `[B, M, 8]`."""
        probabilities, attributes = [], []
        for member in self.members:
            logits, values = member(frames, masks)
            probabilities.append(torch.softmax(logits + self.class_bias, dim=1))
            attributes.append(values)
        stacked = torch.stack(probabilities, dim=1)
        logits, values = self.meta(meta_input(stacked, torch.stack(attributes, dim=1)))
        posterior = torch.softmax(logits / self.temperature + self.class_bias, dim=1)
        low, high = ATTRIBUTE_RANGE
        return posterior, values.clamp(low, high), stacked

    def modality_share(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """What each modality holds of the fused vector, `[B, S]` in the order of `spec.shared_by`; rows sum to 1.

        The mean over the members that have shares; what is made of several modalities stands under "interaction".

        Raises:
            ValueError: if no member has shares.
        """
        found = []
        for member, spec in zip(self.members, self.spec.members, strict=True):
            fused: Fused = cast("Member", member).fuse(frames, masks)
            if fused.shares is not None:
                found.append(share_columns(spec, self.spec.shared_by, fused.shares))
        if not found:
            raise ValueError("no member has shares: they are those of members with gates = 'shares'")
        return torch.stack(found).mean(dim=0)


def share_columns(member: MemberSpec, shared_by: Sequence[str], shares: Tensor) -> Tensor:
    """A member's shares, of its modalities and then of their products, `[B, S']`, in the ensemble's order, `[B, S]`."""
    count = len(member.modalities)
    of = dict(zip(member.modalities, shares.unbind(dim=1)[:count], strict=True))
    of[INTERACTION] = shares[:, count:].sum(dim=1)
    return torch.stack([of.get(name, torch.zeros_like(shares[:, 0])) for name in shared_by], dim=1)


def meta_input(probabilities: Tensor, attributes: Tensor) -> Tensor:
    """Members' outputs `[B, M, 8]` and `[B, M, 3]` as the meta-classifier reads them, `[B, 11 M]`."""
    return torch.cat([probabilities, attribute_unit(attributes)], dim=2).flatten(1)
