"""ONNX Runtime sessions: made in one way, and checked against the names and shapes that a bundle promises."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from model.bundle import FIXED, BundleError, Shape

Shapes = Mapping[str, Shape]

Provider = tuple[str, Mapping[str, str]]
"""An execution provider and its options (`model.providers` has those of devices)."""

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
_REMEDIES: Final = {
    CUDA: (
        'install "medusa-rt[gpu]" and then let onnxruntime-gpu alone own its folder, which the CPU package overwrites: '
        "pip uninstall --yes onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu==VERSION; "
        "the driver must know CUDA 13 (580 or newer)"
    ),
    TENSORRT: (
        "it comes with onnxruntime-gpu and needs TensorRT 10 beside it: pip install "
        '"tensorrt-cu13-libs>=10.13,<11", with its folder in LD_LIBRARY_PATH'
    ),
}
_FOLDERS: Final = {"trt_engine_cache_path", "trt_timing_cache_path"}
"""Options that name a folder which has to be there."""
_ERRORS_ONLY: Final = 3
RUN_ERRORS: Final = (
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NotImplemented,
    native.RuntimeException,
)
"""What onnxruntime raises for a graph that it cannot load or run; it has no base class for them."""


class ProviderError(RuntimeError):
    """ONNX Runtime cannot compute where it was asked to; the message says what it has."""


def remedy(provider: str) -> str:
    """What to do where a provider is not there or does not start."""
    known = _REMEDIES.get(provider, "name one that it has")
    return known.replace("VERSION", onnxruntime.__version__)


def make_session(
    model: Path | bytes, threads: int, providers: Sequence[str | Provider] = (CPU,)
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session that keeps no memory between calls on a CPU.

    With inputs of every length, the CPU arena and its memory patterns keep the largest block of each shape: both are off.

    Args:
        model: a file or its bytes.
        threads: threads of one call.
        providers: ONNX Runtime's execution providers in order of preference, each of which must be there; a name alone
            has no options.

    Raises:
        ProviderError: if a provider is not there or does not start: never a silent fallback.
    """
    named = [(each, {}) if isinstance(each, str) else (each[0], dict(each[1])) for each in providers]
    available = onnxruntime.get_available_providers()
    if missing := [name for name, _ in named if name not in available]:
        has = f"this onnxruntime has no {', '.join(missing)}: it has {', '.join(available)}"
        raise ProviderError(f"{has}; {remedy(missing[0])}")
    if any(name != CPU for name, _ in named):
        onnxruntime.preload_dlls()  # CUDA and cuDNN that pip installed lie where the loader does not look
    for _, chosen in named:
        for key in _FOLDERS & chosen.keys():  # ONNX Runtime makes the last folder of a path, not those above it
            Path(chosen[key]).mkdir(parents=True, exist_ok=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(model, options, providers=named)
    if silent := [name for name, _ in named if name not in session.get_providers()]:
        raise ProviderError(
            f"onnxruntime has {', '.join(silent)} but could not start it: "
            f"check that nvidia-smi sees the GPU, then its libraries: {remedy(silent[0])}"
        )
    return session


def load_graph(
    path: Path, threads: int, providers: Sequence[str | Provider], inputs: Shapes, outputs: Shapes
) -> onnxruntime.InferenceSession:
    """A session of a bundle's graph.

    Raises:
        BundleError: if the graph does not load, or its inputs and outputs are not these.
        ProviderError: as for `make_session`.
    """
    try:
        session = make_session(path, threads, providers)
    except RUN_ERRORS as error:
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
