"""A member of an ensemble, of any family: what trains, is stored and is exported does not ask which."""

from collections.abc import Mapping
from typing import Final

from model.network.cross_fusion import CrossFusion
from model.network.deepser import DeepSER
from model.network.linear import Linear
from model.spec import EncoderSpec, Family, MemberSpec

Member = DeepSER | CrossFusion | Linear
"""All have `spec`, `stacks`, `forward`, `represent`, `fuse` and `classify`."""
_FAMILIES: Final[Mapping[Family, type[Member]]] = {"deepser": DeepSER, "vga": CrossFusion, "linear": Linear}


def build_member(spec: MemberSpec, encoders: Mapping[str, EncoderSpec]) -> Member:
    """The network of a description, with fresh weights.

    Args:
        spec: its family, sizes and modalities.
        encoders: the description of every modality it reads.
    """
    return _FAMILIES[spec.family](spec, encoders)
