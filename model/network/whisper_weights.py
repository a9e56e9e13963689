"""Weights of a Whisper encoder from CTranslate2's `model.bin`, the file that faster-whisper decodes with.

One file for both, so that encoder and decoder cannot be of different models.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Weights = dict[str, Tensor]
Array = npt.NDArray[np.generic]

_BINARY: Final = "model.bin"
_BINARY_VERSIONS: Final = range(4, 7)
"""Versions of CTranslate2's file that hold a type with every variable."""
_TYPES: Final = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""CTranslate2's numbers of types; bfloat16 (5) has no numpy type, and variables of it are left out."""


class WeightsError(ValueError):
    """The folder holds no Whisper encoder that can be read; the message says what was found."""


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """A Whisper encoder's weights, float32.

    Attributes:
        tensors: by the names of `WhisperEncoder.state_dict()`.
        layers: number of Transformer layers.
        heads: attention heads of a layer.
    """

    tensors: Weights
    layers: int
    heads: int


def read_encoder_weights(folder: Path) -> EncoderWeights:
    """The encoder's weights of a Whisper model.

    Raises:
        WeightsError: if the file is no Whisper model of CTranslate2's, or of a version or type that is not read.
        OSError: if there is no such file.
    """
    return _encoder_of(_read_variables(folder / _BINARY))


def _read_variables(path: Path) -> dict[str, Array]:
    """The variables of a CTranslate2 model file by name.

    Source: CTranslate2, `python/ctranslate2/specs/model_spec.py`, which writes the format.
    """
    with path.open("rb") as file:
        try:
            return _parse(file)
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise WeightsError(f"{path} is no CTranslate2 model of a known version: {error}") from error


def _parse(file: BinaryIO) -> dict[str, Array]:
    (version,) = _read(file, "I")
    if version not in _BINARY_VERSIONS:
        raise ValueError(f"version {version}; {_BINARY_VERSIONS.start} to {_BINARY_VERSIONS.stop - 1} are known")
    _read_name(file)  # of the specification
    _read(file, "I")  # its revision
    (count,) = _read(file, "I")
    variables: dict[str, Array] = {}
    for _ in range(count):
        name = _read_name(file)
        (rank,) = _read(file, "B")
        shape = _read(file, f"{rank}I")
        kind, size = _read(file, "BI")
        raw = file.read(size)
        if kind < len(_TYPES):
            variables[name] = np.frombuffer(raw, _TYPES[kind]).reshape(shape)
    (aliases,) = _read(file, "I")
    for _ in range(aliases):
        alias, name = _read_name(file), _read_name(file)
        if name in variables:
            variables[alias] = variables[name]
    return variables


def _read(file: BinaryIO, layout: str) -> tuple[int, ...]:
    packed = struct.Struct(f"<{layout}")
    return packed.unpack(file.read(packed.size))


def _read_name(file: BinaryIO) -> str:
    (length,) = _read(file, "H")
    return file.read(length).rstrip(b"\0").decode()


_CTRANSLATE2_NAMES: Final = {
    "attention_norm": "self_attention/layer_norm",
    "qkv": "self_attention/linear_0",
    "attention_out": "self_attention/linear_1",
    "feed_forward_norm": "ffn/layer_norm",
    "expand": "ffn/linear_0",
    "contract": "ffn/linear_1",
}
"""Parts of a layer, ours and CTranslate2's, which keeps query, key and value as one matrix too."""


def _encoder_of(variables: dict[str, Array]) -> EncoderWeights:
    def tensor(name: str) -> Tensor:
        path = f"encoder/{name}"
        if path not in variables:
            raise WeightsError(f"the model has no {path}, or as bfloat16: not a Whisper model that can be read")
        values = variables[path].astype(np.float32)
        if f"{path}_scale" in variables:  # int8: of every row; int16: of the whole
            values /= variables[f"{path}_scale"].astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        return torch.from_numpy(values)

    def pair(ours: str, theirs: str, names: tuple[str, str]) -> Weights:
        return {
            f"{ours}.{end}": tensor(f"{theirs}/{name}") for end, name in zip(("weight", "bias"), names, strict=True)
        }

    linear, norm = ("weight", "bias"), ("gamma", "beta")
    found: Weights = {"positions": tensor("position_encodings/encodings")}
    for name in ("conv1", "conv2"):
        found |= pair(name, name, linear)
    found |= pair("norm", "layer_norm", norm)
    layers = _count(lambda index: f"encoder/layer_{index}/ffn/linear_0/weight" in variables)
    for index in range(layers):
        for ours, theirs in _CTRANSLATE2_NAMES.items():
            names = norm if ours.endswith("norm") else linear
            found |= pair(f"layers.{index}.{ours}", f"layer_{index}/{theirs}", names)
    return EncoderWeights(found, layers, int(tensor("num_heads")))


def _count(exists: Callable[[int], bool]) -> int:
    index = 0
    while exists(index):
        index += 1
    return index
