"""ONNX Runtime sessions: made in one way, and checked against the names and shapes that a bundle promises."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from model.bundle import FIXED, BundleError, Shape

Shapes = Mapping[str, Shape]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
_OPTIONS: Final = {CUDA: {"use_tf32": "0"}}
"""TF32 keeps ten bits of a float32: not what the parity figures were measured with."""
_ERRORS_ONLY: Final = 3
_LOAD_ERRORS: Final = (
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NotImplemented,
    native.RuntimeException,
)
"""What onnxruntime raises for a graph that it cannot run; it has no base class for them."""


class ProviderError(RuntimeError):
    """ONNX Runtime cannot compute where it was asked to; the message says what it has."""


def has_cuda() -> bool:
    """Whether this onnxruntime was built for CUDA."""
    return CUDA in onnxruntime.get_available_providers()


def make_session(model: Path | bytes, threads: int, providers: Sequence[str] = (CPU,)) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session that keeps no memory between calls.

    With inputs of every length, the CPU arena and its memory patterns keep the largest block of each shape: both are off.

    Args:
        model: a file or its bytes.
        threads: threads of one call.
        providers: ONNX Runtime's execution providers in order of preference, each of which must be there.

    Raises:
        ProviderError: if a provider is not there or does not start: never a silent fallback.
    """
    available = onnxruntime.get_available_providers()
    if missing := [name for name in providers if name not in available]:
        raise ProviderError(f"this onnxruntime has no {', '.join(missing)}: it has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    named = [(name, _OPTIONS.get(name, {})) for name in providers]
    session = onnxruntime.InferenceSession(model, options, providers=named)
    if silent := [name for name in providers if name not in session.get_providers()]:
        raise ProviderError(
            f"onnxruntime has {', '.join(silent)} but could not start it: check its driver and libraries"
        )
    return session


def load_graph(
    path: Path, threads: int, providers: Sequence[str], inputs: Shapes, outputs: Shapes
) -> onnxruntime.InferenceSession:
    """A session of a bundle's graph.

    Raises:
        BundleError: if the graph does not load, or its inputs and outputs are not these.
        ProviderError: as for `make_session`.
    """
    try:
        session = make_session(path, threads, providers)
    except _LOAD_ERRORS as error:
        version = onnxruntime.__version__
        raise BundleError(
            f"{path} does not load in onnxruntime {version}; upgrade it or export again: {error}"
        ) from error
    for side, nodes, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        found = {node.name: tuple(size if isinstance(size, int) else None for size in node.shape) for node in nodes}
        if not _fits(found, expected):
            raise BundleError(f"{path} has the {side} {found}, the manifest says {expected}: export the bundle again")
        if other := {node.name: node.type for node in nodes if node.type != _element(node.name)}:
            wanted = {name: _element(name) for name in other}
            raise BundleError(f"{path} has the {side} {other}, the manifest says {wanted}: export the bundle again")
    return session


def _element(name: str) -> str:
    """The type of a tensor, which follows from what it is called: token ids, masks, and numbers."""
    if name == "ids":
        return "tensor(int64)"
    return "tensor(bool)" if name == "mask" or name.endswith("_mask") else "tensor(float)"


def _fits(found: Shapes, expected: Shapes) -> bool:
    def same(size: int | None, wanted: int | None) -> bool:
        return size is not None if wanted == FIXED else size == wanted

    return found.keys() == expected.keys() and all(
        len(found[name]) == len(shape) and all(map(same, found[name], shape)) for name, shape in expected.items()
    )
