"""A bundle as a model repository of Triton Inference Server: a model per graph, and one that chains those that fit.

    NAME_ENCODER/config.pbtxt, NAME_ENCODER/1/model.onnx       every encoder whose graph travels with the bundle
    NAME_ensemble/config.pbtxt, NAME_ensemble/1/model.onnx     members, meta-classifier and calibration
    NAME_fallback-N/config.pbtxt, ...                          the same of fewer members, where the bundle has fallbacks
    NAME_pipeline/config.pbtxt, NAME_pipeline/1/               encoders into the ensemble, where tensors connect directly
    NAME_fallback-N_pipeline/config.pbtxt, ...                 the same into a fallback

Weights that lie beside a graph lie beside its copy. What is no graph (mel frames, tokens, prosody, functionals, masks, padding)
the client computes: docs/bundle.md.

Source: Triton's "Model Configuration" and "Model Repository" documentation.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

import onnx

from export.errors import DestinationError, ExportError
from model.bundle import ENSEMBLE, Bundle, fallback_file, inputs_of
from model.spec import EnsembleSpec

MAX_BATCH: Final = 32
PREFERRED_BATCHES: Final = (4, 8, 16, 32)
MAX_QUEUE_DELAY_US: Final = 4000
"""What a request waits for company: the daemon's own `models.max_queue_delay_ms`."""

_TYPES: Final[Mapping[int, str]] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}
_ENCODERS: Final = "encoders"


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or output as Triton describes it: sizes without the batch, -1 for one that varies."""

    name: str
    type: str
    dims: tuple[int, ...]

    def named(self, name: str) -> "_Tensor":
        return _Tensor(name, self.type, self.dims)

    def text(self) -> str:
        # Triton takes no tensor without sizes: what has the batch alone is [B, 1] outside and [B] inside
        shape = f"dims: [ {', '.join(map(str, self.dims))} ]" if self.dims else "dims: [ 1 ] reshape: { shape: [ ] }"
        return f'  {{ name: "{self.name}" data_type: {self.type} {shape} }}'


@dataclass(frozen=True, slots=True)
class _Model:
    """A graph of the bundle as a model of the repository."""

    name: str
    file: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    weights: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Step:
    """A model inside the pipeline, and what its tensors are called there."""

    model: _Model
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def write_repository(bundle: Bundle, out: Path) -> list[str]:
    """Writes the repository to a new folder, which appears only once it is complete.

    Returns:
        The names of its models.

    Raises:
        DestinationError: if `out` exists.
        ExportError: if the bundle's name is none for a model, or a graph has what Triton cannot be told.
    """
    if out.exists():
        raise DestinationError(f"{out} exists already: remove it or name another folder")
    name = bundle.manifest.name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ExportError(f"{name!r} is no name of a Triton model: letters, digits, _, . and - are")
    files = [file for file in bundle.manifest.files if re.fullmatch(rf"{_ENCODERS}/[^/]+\.onnx", file)]
    encoders = {Path(file).stem: _model(bundle, f"{name}_{Path(file).stem}", file) for file in files}
    ensembles = [(_model(bundle, f"{name}_ensemble", ENSEMBLE), bundle.spec, f"{name}_pipeline")]
    for number, fallback in enumerate(bundle.manifest.fallbacks, 1):
        file = fallback_file(number)
        model = _model(bundle, f"{name}_{Path(file).stem}", file)
        ensembles.append((model, bundle.spec.reduced(fallback.members), f"{model.name}_pipeline"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        staged = Path(temporary) / out.name
        for model in (*encoders.values(), *(model for model, *_ in ensembles)):
            _write_model(bundle, model, staged / model.name)
        for model, spec, pipeline in ensembles:
            if steps := _steps(spec, encoders, model):
                (staged / pipeline / "1").mkdir(parents=True)  # Triton wants a version's folder, empty or not
                text = _pipeline_config(pipeline, steps)
                (staged / pipeline / "config.pbtxt").write_text(text, encoding="utf-8")
        names = sorted(path.name for path in staged.iterdir())
        os.replace(staged, out)
    return names


def _model(bundle: Bundle, name: str, file: str) -> _Model:
    graph = onnx.load(bundle.path / file, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_tensor(file, value) for value in graph.input if value.name not in constants)
    outputs = tuple(_tensor(file, value) for value in graph.output)
    return _Model(name, file, inputs, outputs, frozenset(_weights(bundle, file, graph)))


def _tensor(file: str, value: onnx.ValueInfoProto) -> _Tensor:
    kind = value.type.tensor_type
    if kind.elem_type not in _TYPES:
        known = ", ".join(_TYPES.values())
        raise ExportError(f"{value.name!r} of {file} has ONNX type {kind.elem_type}; Triton is told of {known}")
    batch, *sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim] or [1]
    if batch != -1:
        raise ExportError(f"{value.name!r} of {file} has no batch that varies in front: Triton could not batch it")
    return _Tensor(value.name, _TYPES[kind.elem_type], tuple(sizes))


def _weights(bundle: Bundle, file: str, graph: onnx.GraphProto) -> Iterator[str]:
    """Files beside the graph that hold its constants, relative to its folder.

    Raises:
        ExportError: if the bundle does not list one of them.
    """
    for tensor in _tensors(graph):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if (PurePosixPath(file).parent / entry.value).as_posix() not in bundle.manifest.files:
                raise ExportError(f"{file} keeps weights in {entry.value!r}, which {bundle.id} does not hold")
            yield entry.value


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _steps(spec: EnsembleSpec, encoders: Mapping[str, _Model], ensemble: _Model) -> list[_Step]:
    """The ensemble behind the encoders whose output is its input as it stands; empty where there is none."""
    wanted = {tensor.name: tensor for tensor in ensemble.inputs}
    steps = []
    for encoder in inputs_of(spec):
        model = encoders.get(encoder.name)
        if model is None or encoder.stack != 1:  # stacked frames are padded to a multiple between encoder and ensemble
            continue
        fitting = [output for output in model.outputs if output.named(encoder.name) == wanted.get(encoder.name)]
        if len(fitting) == 1:
            inputs = {tensor.name: f"{encoder.name}_encoder_{tensor.name}" for tensor in model.inputs}
            steps.append(_Step(model, inputs, {fitting[0].name: encoder.name}))
    if not steps:
        return []
    inputs, outputs = ({t.name: t.name for t in tensors} for tensors in (ensemble.inputs, ensemble.outputs))
    return [*steps, _Step(ensemble, inputs, outputs)]


def _write_model(bundle: Bundle, model: _Model, folder: Path) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    shutil.copyfile(bundle.path / model.file, version / "model.onnx")
    for location in model.weights:
        (version / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile((bundle.path / model.file).parent / location, version / location)
    batches = ", ".join(map(str, PREFERRED_BATCHES))
    text = _head(model.name, "onnxruntime_onnx", model.inputs, model.outputs) + (
        f"dynamic_batching {{\n  preferred_batch_size: [ {batches} ]\n"
        f"  max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US}\n}}\n"
    )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _pipeline_config(name: str, steps: list[_Step]) -> str:
    made = {inside for step in steps for inside in step.outputs.values()}
    inputs = [
        tensor.named(step.inputs[tensor.name])
        for step in steps
        for tensor in step.model.inputs
        if step.inputs[tensor.name] not in made
    ]
    text = "".join(_step_text(step) for step in steps)
    head = _head(name, "ensemble", inputs, steps[-1].model.outputs)
    return f"{head}ensemble_scheduling {{\n{text}}}\n"


def _step_text(step: _Step) -> str:
    maps = [("input_map", step.inputs), ("output_map", step.outputs)]
    lines = [
        f'    {side} {{ key: "{key}" value: "{value}" }}\n' for side, named in maps for key, value in named.items()
    ]
    return f'  step {{\n    model_name: "{step.model.name}"\n    model_version: -1\n{"".join(lines)}  }}\n'


def _head(name: str, platform: str, inputs: Sequence[_Tensor], outputs: Sequence[_Tensor]) -> str:
    def listed(side: str, tensors: Sequence[_Tensor]) -> str:
        return f"{side} [\n" + ",\n".join(tensor.text() for tensor in tensors) + "\n]\n"

    head = f'name: "{name}"\nplatform: "{platform}"\nmax_batch_size: {MAX_BATCH}\n'
    return head + listed("input", inputs) + listed("output", outputs)
