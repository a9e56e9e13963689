"""What members begin with where they do not begin anew, and the losses that hold on to it.

Shapes: B = batch, D = width of the fused representation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.network.member import Member

HEADS = ("classifier", "classifiers", "regressor", "regressors")
"""Parts of a member that linear probing trains."""
CHOSEN: Final = "untouched members that were chosen"
"""Where a transfer begins with some of the source's members: these as they are, joined by a soft vote."""


class Rows(Protocol):
    """Utterances as a member reads them, with or without labels: frames by modality."""

    @property
    def frames(self) -> Mapping[str, Sequence[npt.NDArray[np.float16]]]:
        """Modality -> N arrays `float16 [F, d]`."""
        ...

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Self:
        """The rows at `indices`, in that order."""
        ...

    def __len__(self) -> int: ...


class Auxiliary(Protocol):
    """A loss beside that of the labels."""

    def to(self, device: torch.device) -> Self:
        """Moved to a device."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is learned with the member, and thrown away after."""
        ...

    def __call__(self, member: Member, x: Tensor, represent: Callable[[Rows], Tensor]) -> Tensor:
        """A scalar, with gradients.

        Args:
            member: being trained.
            x: fused representation of the batch `[B, D]`, before MixUp.
            represent: gives that of other utterances.
        """
        ...


MakeAuxiliary = Callable[[Member, int, int], Auxiliary]
"""From a member at the start of a stage, the stage's seed, and its steps at most."""


@dataclass(frozen=True, slots=True)
class Start:
    """What members begin with.

    Attributes:
        weights: of each member by its name, statistics of its inputs included.
        heads_only: linear probing: all but the heads stays as it is.
        auxiliary: makes the loss beside that of the labels; None for none.
    """

    weights: Mapping[str, Mapping[str, Tensor]]
    heads_only: bool = False
    auxiliary: MakeAuxiliary | None = None

    def begin(self, member: Member) -> None:
        """Gives a fresh member its weights, and freezes what is not to be trained."""
        member.load_state_dict(self.weights[member.spec.name])
        for name, parameter in member.named_parameters():
            parameter.requires_grad_(not self.heads_only or name.split(".")[0] in HEADS)


class Anchor(nn.Module):
    """L2-SP: half the squared distance from the source's weights, in every stage, times a strength.

    Source: Li, Grandvalet & Davoine (2018), "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
    arXiv:1802.01483.

    Args:
        member: which of its weights are trained.
        weights: of the source, by name: the anchor.
        strength: alpha of the paper, above 0.
    """

    def __init__(self, member: Member, weights: Mapping[str, Tensor], strength: float) -> None:
        super().__init__()
        self.strength = strength
        self._names = [name for name, parameter in member.named_parameters() if parameter.requires_grad]
        for number, name in enumerate(self._names):
            self.register_buffer(f"held{number}", weights[name].detach().clone())

    def forward(self, member: Member, x: Tensor, represent: Callable[[Rows], Tensor]) -> Tensor:
        """The penalty of the member's weights."""
        distances = [
            (member.get_parameter(name) - self.get_buffer(f"held{number}")).square().sum()
            for number, name in enumerate(self._names)
        ]
        return self.strength / 2 * torch.stack(distances).sum()
