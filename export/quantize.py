"""Smaller files: constants stored in fewer bits, arithmetic in float32.

`compact` loses nothing. `store_half` does: weights of products in float16, and a table of word embeddings in int8 with a
scale per row (all-MiniLM-L6-v2: 0.6 % of its hidden states). onnxruntime turns stored constants back to float32, once for
weights, per row for a table.

Graphs are changed in place: the large ones take gigabytes. Shapes: V = vocabulary, d = encoder width, B = batch, T = tokens.
"""

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.graph_parts import PRODUCTS, GraphParts, rewrite
from model.bundle import TEXT_INPUTS

_SMALL: Final = 10_000
"""Constants with fewer values stay as they are: norms, biases."""
_LEVELS: Final = 127
_HALF_MAX: Final = float(np.finfo(np.float16).max)


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores large constants in float16 wherever that changes no value; returns the graph."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor)
                lossless = bool((values == values.astype(np.float16)).all())
            if lossless:
                casts += _stored_half(tensor)
    rewrite(model, [*casts, *model.graph.node], [])
    return model


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores the weights of products in float16, and a table that `ids` look up in int8; returns the graph.

    Raises:
        ExportError: if float16 cannot hold a weight.
    """
    parts = GraphParts(model)
    weights = {name for node in model.graph.node if node.op_type in PRODUCTS for name in node.input[1:2]}
    stored: list[onnx.NodeProto] = []
    for name in sorted(_behind(weights & parts.constants, parts)):
        _check_fits(parts.tensors[name])
        stored += _stored_half(parts.tensors[name])
    nodes, added = list(stored), []
    for node in model.graph.node:
        if looks_up_ids(node, parts):
            replaced, scale = int8_rows(node, parts.tensors[node.input[0]])
            nodes += replaced
            added.append(scale)
        else:
            nodes.append(node)
    rewrite(model, nodes, added)
    return model


def looks_up_ids(node: onnx.NodeProto, parts: GraphParts) -> bool:
    """Whether a node looks a text encoder's token ids up in its table of words."""
    return node.op_type == "Gather" and node.input[0] in parts.tensors and node.input[1] == next(iter(TEXT_INPUTS))


def int8_rows(node: onnx.NodeProto, table: onnx.TensorProto) -> tuple[list[onnx.NodeProto], onnx.TensorProto]:
    """Looks up `int8 [V, d]` and a scale per row `[V, 1]` instead of `float32 [V, d]`: the nodes, and the scales."""
    name, ids, output = table.name, node.input[1], node.output[0]
    values = numpy_helper.to_array(table)
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / _LEVELS
    table.CopyFrom(numpy_helper.from_array(np.round(values / scale).astype(np.int8), name))
    return [
        helper.make_node("Gather", [name, ids], [f"{output}_int8"]),
        helper.make_node("Cast", [f"{output}_int8"], [f"{output}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", ids], [f"{output}_scale"]),
        helper.make_node("Mul", [f"{output}_float", f"{output}_scale"], [output]),
    ], numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale")


def _behind(names: set[str], parts: GraphParts) -> set[str]:
    """The float32 constants that constant expressions are made of."""
    found, open_ends = set(), list(names)
    while open_ends:
        name = open_ends.pop()
        if name in parts.tensors:
            if parts.tensors[name].data_type == TensorProto.FLOAT:
                found.add(name)
        elif name in parts.producers:
            open_ends += parts.producers[name].input
    return found


def _check_fits(tensor: onnx.TensorProto) -> None:
    largest = float(np.abs(numpy_helper.to_array(tensor)).max())
    if not largest <= _HALF_MAX:
        raise ExportError(f"{tensor.name} holds {largest:g}, float16 at most {_HALF_MAX:g}: choose fp32 for this graph")


def _stored_half(tensor: onnx.TensorProto) -> list[onnx.NodeProto]:
    """Stores a weight in float16 and casts it back; nothing if it is small."""
    values = numpy_helper.to_array(tensor)
    if values.size < _SMALL:
        return []
    name, stored = tensor.name, f"{tensor.name}_half"
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
    return [helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT)]
