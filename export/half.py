"""Arithmetic in 16 bits, float16 or bfloat16: matrix products, convolutions and what only carries their results on.

Norms, softmax, reductions and sums of hidden states stay float32, with casts at the borders; so do inputs and outputs. A
product's result stays in 16 bits through reshapes, its bias, a constant scale and an activation.

Graphs are changed in place.
"""

from typing import Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.graph_parts import PRODUCTS, Array, GraphParts, rewrite

Half = Literal["fp16", "bf16"]

_TYPES: Final = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_PRODUCTS: Final = {"fp16": PRODUCTS, "bf16": PRODUCTS - {"Conv"}}
"""ONNX knows convolutions in bfloat16 from operator set 22 only."""
_CARRIES: Final = frozenset(
    {"Reshape", "Transpose", "Split", "Slice", "Concat", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand"}
)
_FOLLOWS: Final = _CARRIES | {"Add", "Mul", "Relu", "Gelu"}


def compute_half(model: onnx.ModelProto, half: Half) -> onnx.ModelProto:
    """Computes products in 16 bits (with bfloat16 all but convolutions); returns the graph.

    Raises:
        ExportError: if 16 bits cannot hold a product's weight or bias.
    """
    converted = _Conversion(model, half)
    rewrite(model, converted.nodes, converted.added)
    return model


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes nodes over bfloat16 in float32 and rounds what they give; returns the graph.

    What a GPU's matrix units do, for a machine that has no bfloat16 arithmetic: onnxruntime's CPU provider has none.
    """
    parts, nodes = GraphParts(model), []
    for node in model.graph.node:
        rounded = [name for name in node.input if parts.is_bfloat16(name)]
        if node.op_type == "Cast" or not rounded:
            nodes.append(node)
            continue
        for name in dict.fromkeys(rounded):
            nodes.append(helper.make_node("Cast", [name], [f"{name}_for_{node.output[0]}"], to=TensorProto.FLOAT))
        changed = onnx.NodeProto.FromString(node.SerializeToString())
        del changed.input[:], changed.output[:]
        changed.input.extend(f"{name}_for_{node.output[0]}" if name in rounded else name for name in node.input)
        changed.output.extend(f"{name}_exact" for name in node.output)
        nodes.append(changed)
        for name in node.output:
            nodes.append(helper.make_node("Cast", [f"{name}_exact"], [name], to=TensorProto.BFLOAT16))
    rewrite(model, nodes, [])
    return model


class _Conversion:
    """The rewritten nodes. A value `x` that is computed in 16 bits is called `x_fp16`; `x` itself stays float32."""

    def __init__(self, model: onnx.ModelProto, half: Half) -> None:
        self._parts, self._half = GraphParts(model), half
        self._numpy = helper.tensor_dtype_to_np_dtype(_TYPES[half])
        self.nodes: list[onnx.NodeProto] = []
        self.added: list[onnx.TensorProto] = []
        self._computed: set[str] = set()
        """Values that are computed in 16 bits."""
        self._made: set[str] = set()
        """Names that exist by now, of those that are made on demand."""
        for node in model.graph.node:
            self._convert(node)
        for output in model.graph.output:
            self._full(output.name)

    def _convert(self, node: onnx.NodeProto) -> None:
        halved = node.output[0] not in self._parts.constants and (
            node.op_type in _PRODUCTS[self._half]
            or self._looks_up(node)
            or (node.op_type in _FOLLOWS and self._follows(node))
        )
        give = self._halved if halved else self._full
        inputs = [give(name) if self._parts.is_float(name) else name for name in node.input]
        outputs = list(node.output)
        if halved:
            self._computed.update(name for name in outputs if self._parts.is_float(name))
            outputs = [self._named(name) if self._parts.is_float(name) else name for name in outputs]
        changed = onnx.NodeProto.FromString(node.SerializeToString())
        del changed.input[:], changed.output[:]
        changed.input.extend(inputs)
        changed.output.extend(outputs)
        self.nodes.append(changed)

    def _looks_up(self, node: onnx.NodeProto) -> bool:
        """Whether a node takes rows of a table of constants: word embeddings."""
        return node.op_type == "Gather" and node.input[0] in self._parts.tensors and self._parts.is_float(node.input[0])

    def _follows(self, node: onnx.NodeProto) -> bool:
        """Whether all that varies among a node's inputs is computed in 16 bits, and 16 bits hold the rest."""
        inputs = [name for name in node.input if self._parts.is_float(name)]
        varying = [name for name in inputs if name not in self._parts.constants]
        fixed = [name for name in inputs if name in self._parts.constants]
        sums = node.op_type in ("Add", "Mul") and len(varying) != 1
        known = bool(varying) and not sums and all(name in self._computed for name in varying)
        return known and all(self._fits(self._parts.value(name)) for name in fixed)

    def _fits(self, values: Array) -> bool:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(values.astype(self._numpy).astype(np.float32)).all())

    def _named(self, name: str) -> str:
        return f"{name}_{self._half}"

    def _full(self, name: str) -> str:
        if name in self._computed and name not in self._made:
            self._made.add(name)
            self.nodes.append(helper.make_node("Cast", [self._named(name)], [name], to=TensorProto.FLOAT))
        return name

    def _halved(self, name: str) -> str:
        made = self._named(name)
        if name in self._computed or made in self._made:
            return made
        self._made.add(made)
        producer = self._parts.producers.get(name)
        if name in self._parts.constants and producer is not None and producer.op_type in _CARRIES:
            self._carry(producer)  # of weights that another graph holds too: they stay what they are there
        elif name in self._parts.constants:
            self._store(name, made)
        else:
            self.nodes.append(helper.make_node("Cast", [name], [made], to=_TYPES[self._half]))
        return made

    def _carry(self, node: onnx.NodeProto) -> None:
        changed = onnx.NodeProto.FromString(node.SerializeToString())
        inputs = [self._halved(name) if self._parts.is_float(name) else name for name in node.input]
        del changed.input[:], changed.output[:]
        changed.input.extend(inputs)
        changed.output.extend(self._named(name) for name in node.output)
        self._made.update(changed.output)
        self.nodes.append(changed)

    def _store(self, name: str, made: str) -> None:
        values = self._parts.value(name)
        if not self._fits(values):
            largest = float(np.abs(values).max())
            raise ExportError(f"{name} holds {largest:g}, which {self._half} cannot: choose fp32 for this graph")
        self.added.append(numpy_helper.from_array(values.astype(self._numpy), made))
