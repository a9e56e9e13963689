"""An encoder's graph against its network: alone and in batches, with and without padding.

Shapes: F = frames, d = encoder width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import onnx
import onnxruntime

from export.half import emulated
from export.references import Reference, relative
from model.features import Frames
from model.onnx_session import make_session

Item = TypeVar("Item")

BATCH_SIZES: Final = (2, 7)
"""Beside one: a pair, and an odd number that no kernel is made for."""
_EXTRA: Final = 1000
"""Samples or tokens of padding: several frames of a speech transformer, and all that a text encoder takes."""


@dataclass(frozen=True, slots=True)
class EncoderDifferences:
    """Relative L2 differences of the worst example.

    Attributes:
        network: of the graph, in batches of 1, 2 and 7, from the network.
        neighbours: of the graph in batches of 2 and 7 from the graph alone.
        padding: of the graph with padding from the graph without; None where nothing is padded.
    """

    network: float
    neighbours: float
    padding: float | None


def compare(reference: Reference[Any], graph: Path) -> EncoderDifferences:
    """An encoder's examples through its network and its graph, in any precision.

    The longest example runs alone: seven of it would take seven times the memory.
    """
    session = graph_session(graph)
    examples = reference.examples
    expected = reference.expected(examples)
    alone = [reference.found(session, [item])[0] for item in examples]
    network, neighbours = [relative(expected, alone)], [0.0]
    for size in BATCH_SIZES:
        for rows in _batches(len(examples) - 1, size):
            found = reference.found(session, [examples[row] for row in rows])
            network.append(relative([expected[row] for row in rows], found))
            neighbours.append(relative([alone[row] for row in rows], found))
    padding = _padding(reference, session, alone) if reference.masked else None
    return EncoderDifferences(float(np.max(network)), float(np.max(neighbours)), padding)  # NaN, where there is one


def graph_session(graph: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU; bfloat16, which it has not, is computed in float32 and rounded (`export.half.emulated`)."""
    model = onnx.load(graph, load_external_data=False)
    if all(tensor.data_type != onnx.TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        return make_session(graph, threads=1)
    return make_session(emulated(onnx.load(graph)).SerializeToString(), threads=1)


def _padding(reference: Reference[Any], session: onnxruntime.InferenceSession, alone: Sequence[Frames]) -> float:
    examples = reference.examples[:-1]
    padded = [reference.found(session, [item], extra=_EXTRA)[0] for item in examples]
    return relative(alone[:-1], padded)


def _batches(count: int, size: int) -> Iterator[list[int]]:
    """Rows in batches of exactly `size`, the last filled up from the start."""
    rows = cycle(range(count))
    for _ in range(-(-count // size)):
        yield list(islice(rows, size))
