"""A member of an ensemble, of either family: what trains, is stored and is exported does not ask which."""

from collections.abc import Mapping

from model.network.cross_fusion import CrossFusion
from model.network.deepser import DeepSER
from model.spec import EncoderSpec, MemberSpec

Member = DeepSER | CrossFusion
"""Both have `spec`, `stacks`, `forward`, `represent`, `fuse` and `classify`."""


def build_member(spec: MemberSpec, encoders: Mapping[str, EncoderSpec]) -> Member:
    """The network of a description, with fresh weights.

    Args:
        spec: its family, sizes and modalities.
        encoders: the description of every modality it reads.
    """
    return (CrossFusion if spec.family == "vga" else DeepSER)(spec, encoders)
