"""Matrix products in int8: a scale per row of the input, found as it runs, and a scale per column of the weights.

The usual dynamic quantisation (`DynamicQuantizeLinear`) takes one scale over the whole batch: a frame's result then depends
on its neighbours and on padding (all-MiniLM-L6-v2: hidden states move by half a standard deviation in a batch). Here each
frame has its own, and the sums are exact in int32: a row's result is the same bits whatever is around it.

    r_f  = max over k of |x_fk| / 127                       q_fk = 128 + round(x_fk / r_f)         uint8
    s_n  = max over k of |W_kn| / 127                       p_kn = round(W_kn / s_n)               int8
    y_fn = r_f s_n sum over k of (q_fk - 128) p_kn

Inputs are unsigned with a fixed zero point because x86 multiplies uint8 by int8: int8 by int8 took five times as long.
Products of two varying values (attention), convolutions and output layers stay float32.

Graphs are changed in place. Shapes: F = rows (frames, tokens), K = inputs, N = outputs of a product.

Source: per-row and per-column scales as in Dettmers et al., "LLM.int8()", arXiv:2208.07339, section 2.
"""

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph_parts import PRODUCTS, Array, GraphParts, rewrite
from export.quantize import int8_rows, looks_up_ids

_LEVELS: Final = 127
_TINY: Final = 1e-30
"""Scales are at least this: a row or column of zeros stays zeros."""
_CONSTANTS: Final = {
    "int8_levels": np.float32(_LEVELS),
    "int8_tiny": np.float32(_TINY),
    "int8_step": np.float32(1.0),
    "int8_zero": np.uint8(_LEVELS + 1),
    "int8_last_axis": np.array([-1], np.int64),
}
_PASSED: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Split", "Slice", "Identity"}
)
"""What may lie between an output layer and its output, over one varying value; several may be put side by side."""
_ENDS: Final = frozenset({"Softmax", "Sigmoid"})


def compute_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes products by constant matrices in int8, and keeps a table that `ids` look up in it; returns the graph."""
    parts = GraphParts(model)
    outputs = _output_layers(parts)
    nodes: list[onnx.NodeProto] = []
    added = [numpy_helper.from_array(np.asarray(value), name) for name, value in _CONSTANTS.items()]
    quantised: set[str] = set()
    for node in model.graph.node:
        if _is_linear(node, parts) and node.output[0] not in outputs:
            if node.input[0] not in quantised:
                nodes += _row_quantised(node.input[0])
                quantised.add(node.input[0])
            nodes += _product(node)
            added += _column_quantised(node.input[1], parts.value(node.input[1]))
        elif looks_up_ids(node, parts):
            replaced, scale = int8_rows(node, parts.tensors[node.input[0]])
            nodes += replaced
            added.append(scale)
        else:
            nodes.append(node)
    unique = {tensor.name: tensor for tensor in added}  # two products may share a weight
    rewrite(model, nodes, unique.values())
    return model


def _is_linear(node: onnx.NodeProto, parts: GraphParts) -> bool:
    if node.op_type != "MatMul":
        return False
    x, weight = node.input
    return x not in parts.constants and weight in parts.constants and parts.is_float(weight)


def _output_layers(parts: GraphParts) -> set[str]:
    """Results of products that become an output, a probability or a gate with no other layer behind them."""
    consumers = parts.consumers()
    graph_outputs = {output.name for output in parts.model.graph.output}

    def ends(name: str) -> bool:
        if name in graph_outputs:
            return True
        for node in consumers.get(name, ()):
            varying = [i for i in node.input if i not in parts.constants and parts.is_float(i)]
            if node.op_type in _ENDS:
                return True
            passed = node.op_type == "Concat" or (node.op_type in _PASSED and len(varying) == 1)
            if passed and any(ends(output) for output in node.output):
                return True
        return False

    products = (node.output[0] for node in parts.model.graph.node if node.op_type in PRODUCTS)
    return {name for name in products if ends(name)}


def _row_quantised(x: str) -> list[onnx.NodeProto]:
    """`x_rows [..., F, 1]` and `x_uint8 [..., F, K]` of `x [..., F, K]`."""
    return [
        helper.make_node("Abs", [x], [f"{x}_size"]),
        helper.make_node("ReduceMax", [f"{x}_size", "int8_last_axis"], [f"{x}_largest"], keepdims=1),
        helper.make_node("Max", [f"{x}_largest", "int8_tiny"], [f"{x}_range"]),
        helper.make_node("Div", [f"{x}_range", "int8_levels"], [f"{x}_rows"]),
        helper.make_node("Div", ["int8_levels", f"{x}_range"], [f"{x}_inverse"]),
        helper.make_node("Mul", [x, f"{x}_inverse"], [f"{x}_scaled"]),
        # Rounds and clips in one pass: its own scale is 1.
        helper.make_node("QuantizeLinear", [f"{x}_scaled", "int8_step", "int8_zero"], [f"{x}_uint8"]),
    ]


def _product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    (x, weight), y = node.input, node.output[0]
    return [
        helper.make_node("MatMulInteger", [f"{x}_uint8", f"{weight}_int8", "int8_zero"], [f"{y}_int32"]),
        helper.make_node("Cast", [f"{y}_int32"], [f"{y}_sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{y}_sum", f"{weight}_columns"], [f"{y}_unscaled"]),
        helper.make_node("Mul", [f"{y}_unscaled", f"{x}_rows"], [y]),
    ]


def _column_quantised(name: str, weight: Array) -> list[onnx.TensorProto]:
    """`W_int8 [..., K, N]` and `W_columns [..., 1, N]`."""
    scale = np.maximum(np.abs(weight).max(axis=-2, keepdims=True) / _LEVELS, _TINY)
    levels = np.round(weight / scale).astype(np.int8)
    return [
        numpy_helper.from_array(levels, f"{name}_int8"),
        numpy_helper.from_array(scale.astype(np.float32), f"{name}_columns"),
    ]
