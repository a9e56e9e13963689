"""Reading and rewriting a graph: what is constant in it, what a constant expression is worth, which values are float32.

Exported graphs hold transposed and stacked weights as nodes over constants; whoever runs a graph computes those once.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]

PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv"})
"""Where nearly all of the arithmetic is."""
_SHAPE_SIZED: Final = 1024
"""Values of a constant that type inference is shown; it reads those of shapes and axes only."""


class GraphParts:
    """A graph's constants, producers and element types, as they were when this was made."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self.constants = _constants(model.graph, self.tensors)
        self._types = _element_types(model)

    def is_float(self, name: str) -> bool:
        """Whether a value is float32."""
        return self._types.get(name) == TensorProto.FLOAT

    def is_bfloat16(self, name: str) -> bool:
        """Whether a value is bfloat16."""
        return self._types.get(name) == TensorProto.BFLOAT16

    def value(self, name: str) -> Array:
        """What a constant or a constant expression is worth."""
        if name in self.tensors:
            return numpy_helper.to_array(self.tensors[name])
        nodes = self._expression(name)
        needed = {i for node in nodes for i in node.input if i in self.tensors}
        output = onnx.helper.make_empty_tensor_value_info(name)
        graph = onnx.helper.make_graph(nodes, "constant", [], [output], [self.tensors[i] for i in sorted(needed)])
        imports = self.model.opset_import
        part = onnx.helper.make_model(graph, opset_imports=imports, ir_version=self.model.ir_version)
        (found,) = ReferenceEvaluator(part).run(None, {})
        return np.asarray(found)

    def _expression(self, name: str) -> list[onnx.NodeProto]:
        """The nodes behind a constant, in the graph's order."""
        wanted, open_ends = set(), [name]
        while open_ends:
            producer = self.producers.get(open_ends.pop())
            if producer is not None and producer.output[0] not in wanted:
                wanted.add(producer.output[0])
                open_ends += producer.input
        return [node for node in self.model.graph.node if node.output[0] in wanted]

    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each value."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found


def rewrite(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], added: Iterable[onnx.TensorProto]) -> None:
    """Puts `nodes` in place of the graph's, with constants added; nodes and constants that nothing reads are left out."""
    graph = model.graph
    graph.initializer.extend(added)
    used, kept = {output.name for output in graph.output}, []
    for node in reversed(list(nodes)):
        if any(name in used for name in node.output):
            used.update(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))  # `del` below ends the graph's own
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for index in reversed([i for i, tensor in enumerate(graph.initializer) if tensor.name not in used]):
        del graph.initializer[index]


def _constants(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto]) -> set[str]:
    constants = set(tensors)
    for node in graph.node:  # in topological order, as ONNX requires
        if node.op_type == "Constant" or (node.input and all(name in constants for name in node.input if name)):
            constants.update(node.output)
    return constants


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all values, from a copy without the weights: protobuf, and so inference, ends at 2 GB."""
    graph = model.graph
    small = [tensor for tensor in graph.initializer if _count(tensor.dims) <= _SHAPE_SIZED]
    large = [tensor for tensor in graph.initializer if _count(tensor.dims) > _SHAPE_SIZED]
    inputs = [onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    ends = ([*graph.input, *inputs], graph.output)
    bare = onnx.helper.make_graph(graph.node, "types", *ends, small, value_info=graph.value_info)
    copy = onnx.helper.make_model(bare, opset_imports=model.opset_import, ir_version=model.ir_version)
    known = onnx.shape_inference.infer_shapes(copy).graph
    values = (*known.value_info, *known.input, *known.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _count(dims: Sequence[int]) -> int:
    return int(np.prod(dims, dtype=np.int64))
