"""Members, meta-classifier and ensemble to ONNX graphs with dynamic batch and time (encoders: `export.encoders`).

Members and ensemble are written node by node (`export.grouped`), the rest is traced: `torch.onnx.export(dynamo=True)` goes
through `torch.export`; the older exporter can give wrong numbers on masked input without an error.

Shapes: B = batch, F = frames (a multiple of the encoder's `stack`), M = members, d = width of a frame.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.group_attention import Kernel
from export.grouped import ensemble_graph, member_graph
from model.network.member import Member
from model.network.metaclassifier import WIDTH, Ensemble, MetaClassifier

OPSET: Final = 20
"""The first with Gelu as one node; every onnxruntime since 1.17 has it."""
MEMBER_OUTPUTS: Final = ("logits", "attributes")
META_INPUT: Final = "member_outputs"

BATCH = Dim("batch", min=1, max=4096)
EXAMPLE_BATCH: Final = 2
EXAMPLE_STEPS: Final = 3  # the exporter takes a size of 0 or 1 for a constant


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An example of one input of a graph, and the dimensions of it that vary."""

    name: str
    example: Tensor
    varies: dict[int, Dim]


def export_ensemble(ensemble: Ensemble, kernel: Kernel) -> onnx.ModelProto:
    """Members, meta-classifier and calibration as one graph, members of one shape grouped: what is served."""
    return ensemble_graph(ensemble, OPSET, kernel)


def export_member(member: Member, kernel: Kernel) -> onnx.ModelProto:
    """One member: frames and masks of its modalities to `logits [B, 8]` and `attributes [B, 3]`."""
    return member_graph(member, MEMBER_OUTPUTS, OPSET, kernel)


def export_meta(meta: MetaClassifier, members: int) -> onnx.ModelProto:
    """The souped meta-classifier: `member_outputs [B, 11 M]` to `logits [B, 8]` and `attributes [B, 3]`."""
    example = torch.zeros(EXAMPLE_BATCH, WIDTH * members)
    return trace(meta, [GraphInput(META_INPUT, example, {0: BATCH})], MEMBER_OUTPUTS)


def trace(network: nn.Module, inputs: Sequence[GraphInput], outputs: Iterable[str]) -> onnx.ModelProto:
    """The graph of a network whose `forward` takes these inputs and gives these outputs, in their order."""
    with warnings.catch_warnings():
        # Axes that are equal keep one name; and torch's own tree code calls what torch deprecated.
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        program = torch.onnx.export(
            network.eval(),
            tuple(item.example for item in inputs),
            dynamo=True,
            dynamic_shapes=tuple(item.varies for item in inputs),
            input_names=[item.name for item in inputs],
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return _stripped(program.model_proto)


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they hold stack traces with the paths of the machine it ran on."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    return model
