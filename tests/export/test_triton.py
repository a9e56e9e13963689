"""The Triton repository: its configuration is what Triton parses, and its graphs are the bundle's."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx.external_data_helper import set_external_data
from typer.testing import CliRunner

from export.bundle import write_bundle
from export.cli import app
from export.errors import DestinationError, ExportError
from export.triton_repository import MAX_BATCH, write_repository
from model.bundle import Bundle, read_bundle, tokenizer_file, write_manifest
from model.features import collate
from model.network.checkpoint import load_checkpoint, save_checkpoint
from model.runtime import load_runtime
from model.text import TextTokenizer
from tests.model.tiny import tiny_bundle, tiny_frames, tiny_networks, with_fallbacks

FIELD = descriptor_pb2.FieldDescriptorProto
TEXTS: Final = ["i am so happy today", "what are you doing ?"]

MESSAGES: Final[dict[str, dict[str, tuple[int, str, bool]]]] = {
    "Reshape": {"shape": (1, "int64", True)},
    "Input": {
        "name": (1, "string", False),
        "data_type": (2, "DataType", False),
        "dims": (4, "int64", True),
        "reshape": (5, "Reshape", False),
    },
    "Batching": {
        "preferred_batch_size": (1, "int32", True),
        "max_queue_delay_microseconds": (2, "uint64", False),
    },
    "Entry": {"key": (1, "string", False), "value": (2, "string", False)},
    "Step": {
        "model_name": (1, "string", False),
        "model_version": (2, "int64", False),
        "input_map": (3, "Entry", True),
        "output_map": (4, "Entry", True),
    },
    "Scheduling": {"step": (1, "Step", True)},
    "ModelConfig": {
        "name": (1, "string", False),
        "platform": (2, "string", False),
        "max_batch_size": (4, "int32", False),
        "input": (5, "Input", True),
        "output": (6, "Input", True),
        "dynamic_batching": (11, "Batching", False),
        "ensemble_scheduling": (15, "Scheduling", False),
    },
}
"""The messages of Triton's model_config.proto that are used here: field -> (number, type, repeated). Inputs and outputs are two
messages there with the same fields, and a map is written as its entries."""
DATA_TYPES: Final = {"TYPE_INVALID": 0, "TYPE_BOOL": 1, "TYPE_INT64": 8, "TYPE_FP16": 10, "TYPE_FP32": 11}
ONNX_TYPES: Final = {"TYPE_BOOL": "tensor(bool)", "TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}


def model_config() -> Any:
    """The class of `ModelConfig`, built from `MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="triton", syntax="proto3")
    enum = file.enum_type.add(name="DataType")
    for name, number in DATA_TYPES.items():
        enum.value.add(name=name, number=number)
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            scalar = getattr(FIELD, f"TYPE_{kind.upper()}", None)
            field.type = scalar or (FIELD.TYPE_ENUM if kind == "DataType" else FIELD.TYPE_MESSAGE)
            if scalar is None:
                field.type_name = f".triton.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))


def configs(repository: Path) -> dict[str, Any]:
    """The configuration of every model."""
    parse = model_config()
    found = {}
    for folder in repository.iterdir():
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        found[folder.name] = text_format.Parse(text, parse())
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    write_repository(read_bundle(tiny_bundle().bundle), out)
    return out


def run_graph(repository: Path, model: str, feed: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """A model's graph, from the repository alone."""
    session = onnxruntime.InferenceSession(repository / model / "1" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(
        zip(names, session.run(names, {node.name: feed[node.name] for node in session.get_inputs()}), strict=True)
    )


def run_pipeline(
    repository: Path, feed: dict[str, npt.NDArray[Any]], name: str = "tiny_pipeline"
) -> dict[str, npt.NDArray[Any]]:
    """What Triton's scheduler does: every step reads tensors by their names in the pipeline and adds its own."""
    tensors = dict(feed)
    for step in configs(repository)[name].ensemble_scheduling.step:
        inside = {entry.key: tensors[entry.value] for entry in step.input_map}
        outputs = run_graph(repository, step.model_name, inside)
        tensors.update({entry.value: outputs[entry.key] for entry in step.output_map})
    return tensors


def test_every_graph_is_a_model(repository: Path) -> None:
    found = configs(repository)
    assert set(found) == {"tiny_whisper", "tiny_text", "tiny_ensemble", "tiny_pipeline"}
    for name, config in found.items():
        assert config.name == name
        assert config.max_batch_size == MAX_BATCH
        assert (repository / name / "1").is_dir()
    assert found["tiny_pipeline"].platform == "ensemble"
    assert not found["tiny_pipeline"].HasField("dynamic_batching")


@pytest.mark.parametrize("name", ["tiny_whisper", "tiny_text", "tiny_ensemble"])
def test_a_configuration_is_that_of_its_graph(repository: Path, name: str) -> None:
    """Names, types and sizes, as ONNX Runtime sees them; the batch in front is Triton's."""
    config = configs(repository)[name]
    assert config.platform == "onnxruntime_onnx"
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds < 100_000
    assert all(0 < size <= MAX_BATCH for size in config.dynamic_batching.preferred_batch_size)
    session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
    types = {number: kind for kind, number in DATA_TYPES.items()}
    for tensors, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in tensors] == [node.name for node in nodes]
        for tensor, node in zip(tensors, nodes, strict=True):
            assert ONNX_TYPES[types[tensor.data_type]] == node.type
            sizes = [size if isinstance(size, int) else -1 for size in node.shape]
            assert sizes[0] == -1
            inside = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
            assert inside == sizes[1:]
            assert tensor.dims, "Triton takes no tensor without sizes"


def test_the_graphs_in_the_repository_give_what_the_bundle_gives(repository: Path) -> None:
    """With the weights that lie beside them there."""
    runtime = load_runtime(tiny_bundle().bundle, threads=1)
    spec = runtime.bundle.spec
    frames = tiny_frames(spec, np.random.default_rng(1), 3)
    feed: dict[str, npt.NDArray[Any]] = {}
    for name in ("whisper", "prosody", "text"):
        feed[name], feed[f"{name}_mask"] = collate([item[name] for item in frames], spec.encoder(name).stack)
    outputs = run_graph(repository, "tiny_ensemble", feed)
    expected = [posterior.probabilities for posterior in runtime.ensemble.score(frames)]
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)


def test_the_pipeline_gives_what_the_runtime_gives(repository: Path) -> None:
    """Special tokens are masked there and cut out here: for members, which have no positions, that is the same."""
    runtime = load_runtime(tiny_bundle().bundle, threads=1)
    spec = runtime.bundle.spec
    frames = tiny_frames(spec, np.random.default_rng(2), len(TEXTS))
    tokens = TextTokenizer(runtime.bundle.path / tokenizer_file("text")).encode(TEXTS)
    feed: dict[str, npt.NDArray[Any]] = {
        "text_encoder_ids": tokens.ids,
        "text_encoder_mask": tokens.mask,
        "text_mask": tokens.keep,
    }
    for name in ("whisper", "prosody"):
        feed[name], feed[f"{name}_mask"] = collate([item[name] for item in frames], spec.encoder(name).stack)
    config = configs(repository)["tiny_pipeline"]
    assert {tensor.name for tensor in config.input} == set(feed)
    found = run_pipeline(repository, feed)
    (encoder,) = runtime.text
    words = encoder.encode(TEXTS)
    expected = runtime.ensemble.score([{**item, "text": word} for item, word in zip(frames, words, strict=True)])
    without = runtime.ensemble.score([{**item, "text": word[:0]} for item, word in zip(frames, words, strict=True)])
    probabilities = [posterior.probabilities for posterior in expected]
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    assert np.abs(np.subtract(probabilities, [posterior.probabilities for posterior in without])).max() > 1e-3


def test_the_pipeline_is_wired_without_a_loose_end(repository: Path) -> None:
    """Every tensor that a step reads comes from outside or from a step before, and sizes agree."""
    found = configs(repository)
    pipeline = found["tiny_pipeline"]
    known = {tensor.name: tensor for tensor in pipeline.input}
    for step in pipeline.ensemble_scheduling.step:
        inner = found[step.model_name]
        assert [entry.key for entry in step.input_map] == [tensor.name for tensor in inner.input]
        for tensor, entry in zip(inner.input, step.input_map, strict=True):
            outside = known[entry.value]
            assert (outside.data_type, list(outside.dims)) == (tensor.data_type, list(tensor.dims))
        named = {tensor.name: tensor for tensor in inner.output}
        known |= {entry.value: named[entry.key] for entry in step.output_map}
    assert [tensor.name for tensor in pipeline.output] == [tensor.name for tensor in found["tiny_ensemble"].output]
    assert all(tensor.name in known for tensor in pipeline.output)


def test_nothing_connects_where_frames_are_stacked(tmp_path: Path) -> None:
    """They are padded to a multiple between encoder and ensemble, and no graph does that."""
    bundle = read_bundle(tiny_bundle().bundle)
    spec = bundle.spec
    encoders = tuple(replace(e, stack=2) if e.name == "text" else e for e in spec.encoders)
    stacked = replace(bundle, manifest=replace(bundle.manifest, ensemble=replace(spec, encoders=encoders)))
    assert write_repository(stacked, tmp_path / "out") == ["tiny_ensemble", "tiny_text", "tiny_whisper"]


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with two fallbacks, of which the last one reads prosody alone."""
    folder = tmp_path_factory.mktemp("smaller")
    trained = load_checkpoint(tiny_bundle().checkpoint)
    both = replace(trained.spec.members[0], name="both", modalities=("prosody", "text"))
    spec = replace(trained.spec, members=(*trained.spec.members, both))
    members, meta = tiny_networks(spec, seed=4)
    three = replace(trained, spec=spec, members=members, meta=meta)
    save_checkpoint(folder / "checkpoint", with_fallbacks(three, ("voice", "words"), ("voice",)))
    write_bundle(folder / "checkpoint", folder / "bundle")
    return read_bundle(folder / "bundle")


def test_fallbacks_are_models_beside_the_ensemble(smaller: Bundle, tmp_path: Path) -> None:
    names = write_repository(smaller, tmp_path / "out")
    assert set(names) == {
        *("tiny_whisper", "tiny_text", "tiny_ensemble", "tiny_pipeline"),
        *("tiny_fallback-1", "tiny_fallback-1_pipeline", "tiny_fallback-2"),
    }, "no encoder is behind the second"
    runtime = load_runtime(smaller.path, threads=1)
    spec, frames = smaller.spec, tiny_frames(smaller.spec, np.random.default_rng(5), 3)
    feed: dict[str, npt.NDArray[Any]] = {}
    for name in ("whisper", "prosody", "text"):
        feed[name], feed[f"{name}_mask"] = collate([item[name] for item in frames], spec.encoder(name).stack)
    whole = run_graph(tmp_path / "out", "tiny_ensemble", feed)["probabilities"]
    for number, fallback in enumerate(runtime.fallbacks, 1):
        found = run_graph(tmp_path / "out", f"tiny_fallback-{number}", feed)["probabilities"]
        expected = [posterior.probabilities for posterior in fallback.score(frames)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.abs(whole - found).max() > 1e-3
    assert {tensor.name for tensor in configs(tmp_path / "out")["tiny_fallback-2"].input} == {"prosody", "prosody_mask"}


def test_a_fallback_has_a_pipeline_of_its_own(smaller: Bundle, tmp_path: Path) -> None:
    write_repository(smaller, tmp_path / "out")
    runtime = load_runtime(smaller.path, threads=1)
    frames = tiny_frames(smaller.spec, np.random.default_rng(6), len(TEXTS))
    tokens = TextTokenizer(smaller.path / tokenizer_file("text")).encode(TEXTS)
    feed: dict[str, npt.NDArray[Any]] = {
        "text_encoder_ids": tokens.ids,
        "text_encoder_mask": tokens.mask,
        "text_mask": tokens.keep,
    }
    for name in ("whisper", "prosody"):
        feed[name], feed[f"{name}_mask"] = collate([item[name] for item in frames], smaller.spec.encoder(name).stack)
    found = run_pipeline(tmp_path / "out", feed, "tiny_fallback-1_pipeline")
    (encoder,) = runtime.text
    rows = [{**item, "text": word} for item, word in zip(frames, encoder.encode(TEXTS), strict=True)]
    expected = [posterior.probabilities for posterior in runtime.fallbacks[0].score(rows)]
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle().bundle, tmp_path / "bundle"))


def test_an_output_of_one_number_is_reshaped(copied: Path) -> None:
    """Triton knows no tensor of the batch alone."""
    graph = onnx.load(copied / "meta.onnx")
    only = graph.graph.output[0].type.tensor_type.shape
    del only.dim[1:]
    onnx.save(graph, copied / "ensemble.onnx")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    write_repository(read_bundle(copied), copied.parent / "out")
    (logits, _) = configs(copied.parent / "out")["tiny_ensemble"].output
    assert (list(logits.dims), logits.HasField("reshape"), list(logits.reshape.shape)) == ([1], True, [])


def test_weights_that_the_bundle_does_not_hold_are_refused(copied: Path) -> None:
    """A graph may not carry other files out of the folder."""
    (copied.parent / "secret").write_bytes(bytes(4096))
    graph = onnx.load(copied / "meta.onnx")
    tensor = graph.graph.initializer[0]
    set_external_data(tensor, "../secret", 0, 4096)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (copied / "encoders" / "whisper.onnx").write_bytes(graph.SerializeToString())
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(ExportError, match=r"keeps weights in '\.\./secret', which tiny-.* does not hold"):
        write_repository(read_bundle(copied), copied.parent / "out")
    assert not (copied.parent / "out").exists()


def test_a_graph_that_cannot_be_batched_is_refused(copied: Path) -> None:
    graph = onnx.load(copied / "meta.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, copied / "encoders" / "whisper.onnx")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(ExportError, match="has no batch that varies in front"):
        write_repository(read_bundle(copied), copied.parent / "out")


def test_a_name_that_is_none_and_a_taken_place_are_refused(tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle().bundle)
    named = replace(bundle, manifest=replace(bundle.manifest, name="my model/1"))
    with pytest.raises(ExportError, match="'my model/1' is no name of a Triton model"):
        write_repository(named, tmp_path / "out")
    with pytest.raises(DestinationError, match="exists already"):
        write_repository(bundle, tmp_path)


def test_the_command_writes_it(tmp_path: Path) -> None:
    arguments = ["triton", str(tiny_bundle().bundle), str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(configs(tmp_path / "out")) == 4
    assert CliRunner().invoke(app, arguments).exit_code == 2
