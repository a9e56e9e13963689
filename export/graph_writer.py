"""Writing an ONNX graph node by node."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

_IR_VERSION: Final = 10
"""Of the file format: what torch's exporter writes."""


class GraphWriter:
    """Nodes in order, each constant once. Tensors are known by their names."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: Sequence[int | str | None]) -> None:
        """Declares an input; a word in its shape names a length that varies."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def output(self, name: str, tensor: str, shape: Sequence[int | str | None]) -> None:
        """Declares a float32 output."""
        self._nodes.append(helper.make_node("Identity", [tensor], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and names it."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def split(self, tensor: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Parts of a tensor along an axis."""
        names = [f"split_{len(self._nodes)}_{part}" for part in range(len(sizes))]
        self._nodes.append(helper.make_node("Split", [tensor, self.ints(*sizes)], names, axis=axis))
        return names

    def joined(self, *parts: str) -> str:
        """Vectors in a row, such as the parts of a shape."""
        return self.op("Concat", *parts, axis=0)

    def constant(self, values: Tensor, name: str) -> str:
        """A constant; of one name there is one."""
        if name not in self._constants:
            array = np.ascontiguousarray(values.detach().cpu().numpy())
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """A vector of whole numbers: a shape, axes, indices."""
        name = "ints_" + "_".join(map(str, values))
        self._constants.setdefault(name, numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def scalar(self, value: float) -> str:
        """A number."""
        name = f"scalar_{value!r}"
        self._constants.setdefault(name, numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def model(self, name: str, opset: int) -> onnx.ModelProto:
        """The graph as it stands."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)
