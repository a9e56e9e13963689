"""Writing an ONNX graph node by node."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

CONTRIBUTED: Final = "com.microsoft"
"""The operators that ONNX Runtime adds to ONNX's own."""
CONTRIBUTED_VERSION: Final = 1
_IR_VERSION: Final = 10
"""Of the file format: what torch's exporter writes."""


class GraphWriter:
    """Nodes in order, each constant once. Tensors are known by their names.

    Everything is written into the model itself: gigabytes of weights are not held twice.
    """

    def __init__(self) -> None:
        self._model = helper.make_model(onnx.GraphProto(), ir_version=_IR_VERSION)
        self._graph = self._model.graph
        self._constants: set[str] = set()

    def input(self, name: str, kind: int, shape: Sequence[int | str | None]) -> None:
        """Declares an input; a word in its shape names a length that varies."""
        self._graph.input.append(helper.make_tensor_value_info(name, kind, shape))

    def output(self, name: str, tensor: str, shape: Sequence[int | str | None]) -> None:
        """Declares a float32 output."""
        self._graph.node.append(helper.make_node("Identity", [tensor], [name]))
        self._graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and names it.

        An operator that is not ONNX's own has `domain=CONTRIBUTED` and gives float32.
        """
        name = f"{kind.lower()}_{len(self._graph.node)}"
        self._graph.node.append(helper.make_node(kind, inputs, [name], **attributes))
        if "domain" in attributes:  # ONNX does not know its type
            self._graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return name

    def split(self, tensor: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Parts of a tensor along an axis."""
        names = [f"split_{len(self._graph.node)}_{part}" for part in range(len(sizes))]
        self._graph.node.append(helper.make_node("Split", [tensor, self.ints(*sizes)], names, axis=axis))
        return names

    def joined(self, *parts: str) -> str:
        """Vectors in a row, such as the parts of a shape."""
        return self.op("Concat", *parts, axis=0)

    def constant(self, values: Tensor, name: str) -> str:
        """A constant; of one name there is one."""
        self._keep(name, np.ascontiguousarray(values.detach().cpu().numpy()))
        return name

    def ints(self, *values: int) -> str:
        """A vector of whole numbers: a shape, axes, indices."""
        name = "ints_" + "_".join(map(str, values))
        self._keep(name, np.array(values, np.int64))
        return name

    def scalar(self, value: float) -> str:
        """A number."""
        name = f"scalar_{value!r}"
        self._keep(name, np.array(value, np.float32))
        return name

    def _keep(self, name: str, values: npt.NDArray[Any]) -> None:
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(values, name))

    def model(self, name: str, opset: int) -> onnx.ModelProto:
        """The graph, once it is complete; nothing can be added behind it."""
        self._graph.name = name
        del self._model.opset_import[:]
        domains = {node.domain for node in self._graph.node if node.domain}
        self._model.opset_import.append(helper.make_opsetid("", opset))
        self._model.opset_import.extend(helper.make_opsetid(domain, CONTRIBUTED_VERSION) for domain in domains)
        return self._model
