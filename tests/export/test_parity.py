"""The parity harness: what it compares, what it finds, what it refuses."""

import shutil
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from export.bundle import write_bundle
from export.encoders import write_graph
from export.errors import DestinationError, ParityError
from export.parity import (
    OTHER_OPSET,
    REFUSED,
    Figure,
    Limits,
    check,
    components,
    encoder_figure,
    measure,
)
from export.parity_encoders import compare
from export.parity_table import figures_of, parity_table
from export.parity_utterances import example_utterances
from export.precision import PRECISIONS, Precision, Precisions, converted
from export.precision_table import Row, measure_precisions, recorded_utterances, table_of
from export.references import Reference, reference_of
from model.audio import MAX_UTTERANCE, MIN_UTTERANCE
from model.bundle import read_bundle, write_manifest
from model.network.checkpoint import load_checkpoint, save_checkpoint
from tests.model.tiny import tiny_bundle, with_fallbacks

ASSETS = Path(__file__).parents[1] / "assets"
FEW = Limits(utterances=30)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle().bundle, tmp_path / "bundle"))


def tiny_reference(name: str) -> Reference[Any]:
    return reference_of(load_checkpoint(tiny_bundle().checkpoint).spec.encoder(name))


@cache
def tiny_graph(name: str) -> bytes:
    """An encoder's float32 graph: tracing takes seconds."""
    graph: bytes = tiny_reference(name).graph().SerializeToString()
    return graph


@pytest.fixture(scope="module")
def coarse_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every precision but float32: an export takes several seconds."""
    out = tmp_path_factory.mktemp("coarse") / "bundle"
    chosen = Precisions.parse(["encoder.text=int8", "encoder.whisper=bf16", "members=fp16", "member.voice=int8"])
    write_bundle(tiny_bundle().checkpoint, out, limits=FEW, precisions=chosen)
    return out


def test_a_bundle_records_its_precisions_and_what_they_cost(coarse_bundle: Path) -> None:
    manifest = read_bundle(coarse_bundle).manifest
    assert manifest.precisions == {
        "encoder whisper": "bf16",
        "encoder text": "int8",
        "member voice": "int8",
        "member words": "fp16",
        "meta-classifier": "fp32",
        "ensemble": "fp16",
    }
    assert manifest.kernels == {"member voice": "fused", "member words": "composed", "ensemble": "composed"}
    for component, file in (("member voice", "members/voice.onnx"), ("ensemble", "ensemble.onnx")):
        graph = onnx.load(coarse_bundle / file, load_external_data=False)
        written = any(node.op_type == "MultiHeadAttention" for node in graph.graph.node)
        assert written == (manifest.kernels[component] == "fused")
    limits = Limits()
    assert manifest.tolerances["encoder text, float32"] == limits.hidden
    assert manifest.tolerances["encoder text"] == limits.coarse_hidden["int8"]
    assert manifest.tolerances["member words"] == limits.coarse_posterior["fp16"]
    assert manifest.tolerances["meta-classifier"] == limits.posterior
    assert manifest.tolerances["bundle"] == limits.coarse_posterior["int8"] == 2e-2
    assert manifest.tolerances["bundle, other top class"] == 5e-3
    assert limits.posterior < manifest.parity["ensemble"] < limits.coarse_posterior["fp16"] == 5e-3


def test_a_loss_above_the_limit_leaves_no_bundle(tmp_path: Path) -> None:
    strict = replace(FEW, coarse_posterior=MappingProxyType({"int8": 1e-9, "fp16-weights": 5e-3}))
    with pytest.raises(ParityError, match="the difference is"):
        write_bundle(
            tiny_bundle().checkpoint, tmp_path / "bundle", limits=strict, precisions=Precisions.parse(["members=int8"])
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["text", "whisper"])
def test_encoders_in_every_precision_are_compared_alone_in_batches_and_padded(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    reference = tiny_reference(name)
    graph, limits = tmp_path / "encoder.onnx", Limits()
    write_graph(converted(onnx.load_from_string(tiny_graph(name)), precision), graph)
    found = compare(reference, graph)
    if precision == "fp32":
        assert found.network <= limits.hidden
        assert found.neighbours <= limits.hidden
    else:
        assert found.network <= limits.coarse_hidden[precision]
        assert found.neighbours <= limits.coarse_invariance[precision]
        assert found.network > limits.hidden or name == "whisper"
    assert (found.padding is None) == (name == "whisper")


def test_an_encoder_that_hears_its_neighbours_is_found(tmp_path: Path) -> None:
    """The usual dynamic quantisation takes one scale over the batch."""
    reference = tiny_reference("text")
    graph = onnx.load_from_string(tiny_graph("text"))
    product = next(node for node in graph.graph.node if node.op_type == "LayerNormalization")
    x, usual = product.output[0], f"{product.output[0]}_usual"
    for node in graph.graph.node:
        node.input[:] = [usual if name == x else name for name in node.input]
    quantise = onnx.helper.make_node("DynamicQuantizeLinear", [x], ["q", "scale", "zero"])
    back = onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [usual])
    at = list(graph.graph.node).index(product) + 1
    graph.graph.node.insert(at, back)
    graph.graph.node.insert(at, quantise)
    write_graph(graph, tmp_path / "encoder.onnx")
    found = compare(reference, tmp_path / "encoder.onnx")
    assert found.neighbours > Limits().hidden
    assert found.padding is not None
    assert found.padding > Limits().hidden


def test_the_float32_graph_is_a_figure_of_its_own(tmp_path: Path) -> None:
    reference = tiny_reference("text")
    write_graph(onnx.load_from_string(tiny_graph("text")), tmp_path / "encoder.onnx")
    figure = encoder_figure(reference, tmp_path / "encoder.onnx", Limits())
    assert figure.name == "encoder text, float32"
    assert figure.passes


def test_a_graph_that_the_checker_refuses_is_not_run(copied: Path) -> None:
    graph = onnx.load(copied / "meta.onnx")
    graph.graph.node.append(onnx.helper.make_node("Relu", ["nothing"], ["unread"]))
    onnx.save(graph, copied / "meta.onnx")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(ParityError, match=f"{REFUSED}: the difference is 1, at most 0"):
        measure(load_checkpoint(tiny_bundle().checkpoint), read_bundle(copied), Limits())


def test_a_graph_of_another_opset_is_found(copied: Path) -> None:
    graph = onnx.load(copied / "meta.onnx")
    graph.opset_import[0].version -= 1
    onnx.save(graph, copied / "meta.onnx")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(ParityError, match=f"{OTHER_OPSET}: the difference is 1, at most 0"):
        measure(load_checkpoint(tiny_bundle().checkpoint), read_bundle(copied), Limits())


def test_a_bundle_of_other_members_is_not_compared() -> None:
    trained = load_checkpoint(tiny_bundle().checkpoint)
    fewer = replace(trained, spec=replace(trained.spec, members=trained.spec.members[:1]), members=trained.members[:1])
    with pytest.raises(ParityError, match="the bundle has .*member words.*, the checkpoint .*member voice"):
        measure(fewer, read_bundle(tiny_bundle().bundle), Limits())


def test_components_name_their_files_and_precisions() -> None:
    found = {part.name: (part.file, part.precision) for part in components(read_bundle(tiny_bundle().bundle).manifest)}
    assert found == {
        "encoder whisper": ("encoders/whisper.onnx", "fp32"),
        "encoder text": ("encoders/text.onnx", "fp16-weights"),
        "member voice": ("members/voice.onnx", "fp32"),
        "member words": ("members/words.onnx", "fp32"),
        "meta-classifier": ("meta.onnx", "fp32"),
        "ensemble": ("ensemble.onnx", "fp32"),
    }


def test_the_table_shows_component_precision_size_loss_and_limit() -> None:
    bundle = read_bundle(tiny_bundle().bundle)
    console = Console(record=True, width=140, file=StringIO())
    console.print(parity_table(bundle, figures_of(bundle)))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line
    ]
    lines = {(name, what): rest for name, *rest, what, _, _ in cells}
    assert lines["encoder text", "with the network"] == ["fp16-weights", "0.0"]
    assert lines["encoder text", "padding"] == ["fp16-weights", "0.0"]
    assert lines["bundle", "with the network"] == ["", ""]
    assert len(lines) == len(bundle.manifest.parity)
    assert [row[-1] for row in cells if row[0] == "encoder text"] == ["1e-05", "2e-02", "1e-05", "1e-05"]


def test_made_utterances_are_legal_and_the_same_every_time() -> None:
    made, again = example_utterances(20), example_utterances(20)
    assert [item.text for item in made] == [item.text for item in again]
    assert made[0].text == ""
    assert all(item.text for item in made[1:])
    for item, same in zip(made, again, strict=True):
        assert item.audio.dtype == np.float32
        assert MIN_UTTERANCE <= len(item.audio) <= MAX_UTTERANCE
        assert 0.01 < np.abs(item.audio).max() <= 1
        np.testing.assert_array_equal(item.audio, same.audio)


def test_recordings_stand_in_for_made_utterances(tmp_path: Path) -> None:
    found = recorded_utterances(ASSETS, 3)
    assert len(found) == 3
    assert all(MIN_UTTERANCE <= len(item.audio) <= MAX_UTTERANCE for item in found)
    with pytest.raises(DestinationError, match="holds no recording"):
        recorded_utterances(tmp_path, 3)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """Of an ensemble with a fallback."""
    place = tmp_path_factory.mktemp("precisions")
    save_checkpoint(place / "checkpoint", with_fallbacks(load_checkpoint(tiny_bundle().checkpoint), ("words",)))
    return place / "graphs", measure_precisions(place / "checkpoint", place / "graphs", limits=FEW)


def test_every_precision_of_every_component_is_a_row_and_a_file(rows: tuple[Path, list[Row]]) -> None:
    folder, found = rows
    wanted = [
        (part, precision)
        for part in ("encoder whisper", "encoder text", "members", "ensemble", "fallback 1")
        for precision in PRECISIONS
    ]
    assert [(row.component, row.precision) for row in found] == wanted
    for precision in PRECISIONS:
        files = {path.relative_to(folder / precision).as_posix() for path in (folder / precision).rglob("*.onnx")}
        assert files == {
            "encoders/text.onnx",
            "encoders/whisper.onnx",
            "ensemble.onnx",
            "fallback-1.onnx",
            "members/voice.onnx",
            "members/words.onnx",
        }
    assert {path.name for path in folder.iterdir()} == set(PRECISIONS)


def test_rows_hold_what_was_measured(rows: tuple[Path, list[Row]]) -> None:
    by_name = {(row.component, row.precision): row for row in rows[1]}
    exact, coarse = by_name["ensemble", "fp32"], by_name["ensemble", "int8"]
    assert exact.posterior <= exact.limit == Limits().posterior
    assert exact.same_class == 1.0
    assert exact.speed == 1.0
    assert exact.posterior < coarse.posterior
    assert coarse.limit == Limits().coarse_posterior["int8"]
    assert by_name["encoder text", "bf16"].speed is None
    smaller = by_name["fallback 1", "fp32"]
    assert smaller.posterior <= smaller.limit, "compared with its own networks, not with all members"
    assert smaller.posterior < by_name["fallback 1", "int8"].posterior
    assert by_name["fallback 1", "fp16"].size < exact.size
    assert by_name["members", "fp16"].posterior > by_name["members", "fp32"].posterior
    console = Console(record=True, width=140, file=StringIO())
    console.print(table_of(rows[1]))
    assert "encoder whisper" in console.export_text()


def test_a_taken_folder_for_precisions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="exists already"):
        measure_precisions(tiny_bundle().checkpoint, tmp_path)


def test_the_worst_figure_is_named() -> None:
    figures = [Figure("a", 1e-6, 1e-5), Figure("b", 3e-2, 2e-2), Figure("c", 1e-3, 1e-5)]
    with pytest.raises(ParityError, match=r"c: the difference is 0\.001, at most 1e-05 is accepted \(2 of 3"):
        check(figures)
    check(figures[:1])


def test_a_figure_that_is_no_number_fails() -> None:
    with pytest.raises(ParityError, match="b: the difference is nan"):
        check([Figure("a", 1.0, 1e-5), Figure("b", float("nan"), 1e-5)])
