"""A smaller text encoder: matrix products in int8 per channel, word embeddings in int8 per row.

Biases, norms, softmax, position embeddings and the sum of layers stay in float32.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

_LARGEST_INT8: Final = 127.0


def quantize_text_encoder(source: Path, target: Path) -> None:
    """Writes the quantised form of the text encoder `source` to `target`."""
    with TemporaryDirectory() as folder:
        products = Path(folder) / "products.onnx"
        quantize_dynamic(
            source, products, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
        )
        graph = onnx.load(products)
    _quantize_embeddings(graph)
    onnx.checker.check_model(graph)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, target)


def _quantize_embeddings(model: onnx.ModelProto) -> None:
    """The largest table that a Gather reads becomes int8 rows with a scale each: rows are scaled after the look-up."""
    graph = model.graph
    tables = {initializer.name: initializer for initializer in graph.initializer}
    gathers = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    gather = max(gathers, key=lambda node: np.prod(tables[node.input[0]].dims))
    table = numpy_helper.to_array(tables[gather.input[0]])
    scale = np.abs(table).max(axis=1, keepdims=True) / _LARGEST_INT8
    rows = np.round(table / np.maximum(scale, 1e-12)).astype(np.int8)
    name, ids, out = gather.input[0], gather.input[1], gather.output[0]
    graph.initializer.remove(tables[name])
    graph.initializer.extend([
        numpy_helper.from_array(rows, f"{name}_int8"),
        numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
    ])
    place = list(graph.node).index(gather)
    graph.node.remove(gather)
    replacement = [
        helper.make_node("Gather", [f"{name}_int8", ids], [f"{out}_int8"]),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_unscaled"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scale"]),
        helper.make_node("Mul", [f"{out}_unscaled", f"{out}_scale"], [out]),
    ]
    for offset, node in enumerate(replacement):
        graph.node.insert(place + offset, node)
