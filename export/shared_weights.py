"""Graphs that hold the same weights keep them in one file.

The ensemble's graph is its members' graphs and a little more. Each member's large constants lie beside its graph in
`NAME.weights`, as ONNX external data, and the ensemble's graph refers to those files instead of holding them again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

_SMALL: Final = 1024
"""Bytes below which a constant stays inside its graph."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the bytes of a constant are: the file, relative to the folder of the store, and the part of it."""

    file: str
    offset: int
    length: int


class WeightStore:
    """Writes graphs under one folder; a constant that was written before is referred to.

    Args:
        folder: the bundle's folder. A graph may refer to files in its own folder and below, not above.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, _Place] = {}

    def write_with_weights(self, model: onnx.ModelProto, path: str) -> None:
        """Writes a graph to `path` and its large constants to the file beside it that ends in `.weights`."""
        target = self._folder / path
        weights = target.with_suffix(".weights")
        offset = 0
        with weights.open("wb") as file:
            for tensor in _large(model):
                raw = tensor.raw_data
                file.write(raw)
                place = _Place(weights.relative_to(self._folder).as_posix(), offset, len(raw))
                self._places.setdefault(_digest(raw), place)
                _refer(tensor, weights.name, place)
                offset += len(raw)
        onnx.save(model, target)

    def write(self, model: onnx.ModelProto, path: str) -> None:
        """Writes a graph to `path`, at the top of the folder; constants that the store has are not written again."""
        for tensor in _large(model):
            place = self._places.get(_digest(tensor.raw_data))
            if place is not None:
                _refer(tensor, place.file, place)
        onnx.save(model, self._folder / path)


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _SMALL]


def _refer(tensor: onnx.TensorProto, location: str, place: _Place) -> None:
    set_external_data(tensor, location, place.offset, place.length)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
