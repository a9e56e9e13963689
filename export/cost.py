"""What one utterance costs in each component: floating-point operations, milliseconds, parameters, bytes on disk.

A multiply-add counts as two operations. Matrix products, convolutions and attention are counted, on shapes that follow from
the graphs themselves (onnxruntime's shape inference), or, where shapes depend on values, on those of a run; norms, activations
and sums are not: they are a few per cent. Milliseconds are the median of a few runs on one core of the machine that writes the
bundle: they compare components, not machines.

A graph that takes no utterance so long has neither; an encoder that CTranslate2 or numpy runs has no graph.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
from torch import Tensor

from export.to_onnx import META_INPUT
from model.audio import MEL_HOP, SAMPLE_RATE_HZ, WHISPER_HOP, bucket_length
from model.bundle import (
    ENSEMBLE,
    SPEECH_AUDIO,
    SPEECH_AUDIO_MASK,
    TEXT_INPUTS,
    WHISPER_INPUT,
    fallback_file,
    graph_file,
    inputs_of,
    mask_of,
)
from model.features import FUNCTIONALS_STEPS
from model.network.checkpoint import Checkpoint
from model.network.member import Member
from model.network.metaclassifier import WIDTH
from model.onnx_session import CPU, RUN_ERRORS, make_session
from model.spec import EncoderSpec

UTTERANCE_S: Final = 4.0
"""Length of the utterance that is counted."""
TOKENS_PER_S: Final = 3.5
"""Tokens of a second of speech: two and a half words, somewhat more pieces than words."""

Sizes = dict[str, list[int]]
"""Input -> its sizes."""
Costs = dict[str, dict[str, float]]

_PRODUCTS: Final = {"MatMul", "FusedMatMul", "MatMulInteger", "Gemm"}
_CONVOLUTIONS: Final = {"Conv", "ConvInteger"}
_ATTENTION: Final = {"MultiHeadAttention"}
_COUNTED: Final = _PRODUCTS | _CONVOLUTIONS | _ATTENTION
_NO_COUNT: Final = -1
_RUNS: Final = 5


def component_costs(checkpoint: Checkpoint, folder: Path, seconds: float = UTTERANCE_S) -> Costs:
    """Component -> "flops", "cpu_ms", "parameters", "bytes".

    Components are "encoder NAME", "member NAME", "meta-classifier", "ensemble" and "fallback NUMBER".

    Args:
        checkpoint: what was exported.
        folder: the bundle's graphs.
        seconds: length of the one utterance that is counted.

    Returns:
        "flops" and "cpu_ms" are missing where a graph cannot be counted and run. The bytes of the ensemble are those of
        its own file: its weights lie beside the members' graphs.
    """
    spec = checkpoint.spec
    frames = {encoder.name: encoder for encoder in inputs_of(spec)}
    parameters = [_count(_served(member)) for member in checkpoint.members]
    meta = _count(checkpoint.meta.parameters())
    costs: Costs = {}
    for encoder in spec.encoders:
        path = folder / graph_file(encoder)
        if path.is_file():
            costs[f"encoder {encoder.name}"] = _cost(path, _encoder_sizes(encoder, seconds))
    for member, count in zip(checkpoint.members, parameters, strict=True):
        sizes = frame_sizes([frames[name] for name in member.spec.modalities], seconds)
        costs[f"member {member.spec.name}"] = _cost(folder / "members" / f"{member.spec.name}.onnx", sizes, count)
    costs["meta-classifier"] = _cost(folder / "meta.onnx", {META_INPUT: [1, WIDTH * len(parameters)]}, meta)
    costs["ensemble"] = _cost(folder / ENSEMBLE, frame_sizes(frames.values(), seconds), sum(parameters) + meta)
    for number in range(1, len(checkpoint.fallbacks) + 1):
        smaller = checkpoint.fallback(number)
        sizes = frame_sizes(inputs_of(smaller.spec), seconds)
        parts = [_count(_served(member)) for member in smaller.members] + [_count(smaller.meta.parameters())]
        costs[f"fallback {number}"] = _cost(folder / fallback_file(number), sizes, sum(parts))
    return costs


def flops_of(path: Path, sizes: Mapping[str, list[int]]) -> int:
    """Operations of one run on inputs of these sizes: from the graph alone where its shapes follow, else from a run.

    Raises:
        ValueError: if the graph takes none such.
    """
    try:
        return graph_flops(onnx.load(path, load_external_data=False), sizes)
    except ValueError:
        return run_flops(path, sizes)


def graph_flops(model: onnx.ModelProto, sizes: Mapping[str, list[int]]) -> int:
    """Operations of one run on inputs of these sizes; what an input of another name leaves open is 1.

    Raises:
        ValueError: if the shape of a product or convolution does not follow from the sizes, or the graph takes none such.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    del bound.graph.value_info[:]
    for item in bound.graph.input:
        for place, size in enumerate(item.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_value = sizes[item.name][place] if item.name in sizes else 1
    inside = [tensor for tensor in bound.graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    for tensor in bound.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:  # its values decide no shape and are not read
            bound.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in inside]
    del bound.graph.initializer[:]
    bound.graph.initializer.extend(kept)
    try:
        shapes = _shapes(SymbolicShapeInference.infer_shapes(bound, auto_merge=True))
    except Exception as error:  # its failures have no class of their own, from assertions to key errors
        raise ValueError(f"no shapes follow from inputs of {dict(sizes)}: {error!r}") from error
    return sum(_node_flops(node, shapes) for node in bound.graph.node if node.op_type in _COUNTED)


def run_flops(path: Path, sizes: Mapping[str, list[int]]) -> int:
    """Operations of one run on inputs of these sizes, all ones, as ONNX Runtime's profile tells the shapes of its nodes.

    Raises:
        ValueError: if the graph takes none such.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nodes keep their names
    options.log_severity_level, options.enable_profiling = 4, True
    options.add_session_config_entry("session.disable_prepacking", "1")  # what is packed has no shape in the profile
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/run"
        with _taking(sizes):
            session = onnxruntime.InferenceSession(path, options, providers=[CPU])
            session.run(None, _ones(session, sizes))
        nodes = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return sum(_told_flops(node["args"]) for node in nodes if node.get("args", {}).get("op_name") in _COUNTED)


def run_ms(path: Path, sizes: Mapping[str, list[int]]) -> float:
    """Milliseconds of one run on inputs of these sizes, on one core.

    Raises:
        ValueError: if the graph takes none such.
    """
    took = []
    with _taking(sizes):
        session = make_session(path, 1)
        feed = _ones(session, sizes)
        session.run(None, feed)  # the first one allocates
        for _ in range(_RUNS):
            begun = time.perf_counter()
            session.run(None, feed)
            took.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(took)


@contextmanager
def _taking(sizes: Mapping[str, list[int]]) -> Iterator[None]:
    """One error for all that onnxruntime says of a graph and inputs of these sizes."""
    try:
        yield
    except RUN_ERRORS as error:
        raise ValueError(f"no run on inputs of {dict(sizes)}: {error}") from error


def _ones(session: onnxruntime.InferenceSession, sizes: Mapping[str, list[int]]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of these sizes, all ones; 0 stands for the size that the graph itself says."""
    kinds = {"tensor(float)": np.float32, "tensor(bool)": np.bool_, "tensor(int64)": np.int64}
    return {
        item.name: np.ones(
            [size or known for known, size in zip(item.shape, sizes[item.name], strict=True)], kinds[item.type]
        )
        for item in session.get_inputs()
    }


def _told_flops(told: Mapping[str, Any]) -> int:
    """Of one node of a profile; no graph of ours has a product whose first factor is transposed."""
    (first, second), (out,) = (
        [next(iter(tensor.values())) for tensor in told[f"{side}_type_shape"]][:count]
        for side, count in (("input", 2), ("output", 1))
    )
    return _flops(told["op_name"], first, second, out)


def frame_sizes(encoders: Iterable[EncoderSpec], seconds: float) -> Sizes:
    """Sizes of frames `[1, F, d]` and masks `[1, F]` of one utterance, whole steps of every encoder."""
    sizes: Sizes = {}
    for encoder in encoders:
        steps = -(-_frames(encoder, seconds) // encoder.stack)
        sizes[encoder.name] = [1, steps * encoder.stack, encoder.dim]
        sizes[mask_of(encoder.name)] = sizes[encoder.name][:2]
    return sizes


def _node_flops(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    first, second, out = (shapes.get(name, [_NO_COUNT]) for name in (node.input[0], node.input[1], node.output[0]))
    if _NO_COUNT in (*first, *second, *out):
        raise ValueError(
            f"the shapes of {node.op_type} {node.name or node.output[0]} depend on values: {first}, {second}"
        )
    if any(attribute.name == "transA" and attribute.i for attribute in node.attribute):
        first = [*first[:-2], first[-1], first[-2]]
    return _flops(node.op_type, first, second, out)


def _flops(kind: str, first: Sequence[int], second: Sequence[int], out: Sequence[int]) -> int:
    """Operations of one node from the sizes of its first two inputs and its output."""
    if kind in _CONVOLUTIONS:
        return 2 * math.prod(out) * math.prod(second[1:])
    if kind in _ATTENTION:  # scores of queries [B, T, D] and keys [B, K, D], then their sums of values
        return 2 * second[1] * (math.prod(first) + math.prod(out))
    return 2 * math.prod(out) * first[-1]


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Tensor -> its sizes, `_NO_COUNT` for those that are not known."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for item in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = item.type.tensor_type
        if kind.HasField("shape"):
            sizes = [size.dim_value if size.HasField("dim_value") else _NO_COUNT for size in kind.shape.dim]
            shapes.setdefault(item.name, sizes)
    return shapes


def _cost(path: Path, sizes: Mapping[str, list[int]], parameters: int | None = None) -> dict[str, float]:
    model = onnx.load(path, load_external_data=False)
    weights = path.with_suffix(".weights")
    found: dict[str, float] = {
        "parameters": _stored(model) if parameters is None else parameters,
        "bytes": path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0),
    }
    with suppress(ValueError):
        found = {"flops": flops_of(path, sizes), **found}
    with suppress(ValueError):
        found["cpu_ms"] = run_ms(path, sizes)
    return found


def _encoder_sizes(encoder: EncoderSpec, seconds: float) -> Sizes:
    samples = round(seconds * SAMPLE_RATE_HZ)
    tokens = round(seconds * TOKENS_PER_S)
    frames = bucket_length(samples) // WHISPER_HOP
    if encoder.kind == "text-transformer":
        return dict.fromkeys(TEXT_INPUTS, [1, tokens])
    if encoder.kind == "speech-transformer":
        return dict.fromkeys((SPEECH_AUDIO, SPEECH_AUDIO_MASK), [1, samples])
    return {WHISPER_INPUT: [1, 0, 2 * frames]}  # the number of mel bands stands in the graph


def _frames(encoder: EncoderSpec, seconds: float) -> int:
    if encoder.kind == "functionals":
        return FUNCTIONALS_STEPS
    if encoder.kind == "text-transformer":
        return max(1, round(seconds * TOKENS_PER_S))
    return round(seconds * SAMPLE_RATE_HZ / (MEL_HOP if encoder.kind == "prosody" else WHISPER_HOP))


def _served(member: Member) -> list[Tensor]:
    """A member's parameters but for those that only training reads."""
    return [values for name, values in member.named_parameters() if not name.startswith("views.")]


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _stored(model: onnx.ModelProto) -> int:
    """Parameters that a graph holds: what is no index and no single number."""
    kinds = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type not in kinds and math.prod(t.dims) > 1)
