import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from export.bundle import write_bundle
from export.cli import app
from export.errors import DestinationError, ParityError
from export.parity import OTHER_OPSET, REFUSED, Limits, check, measure
from model.bundle import read_bundle, write_manifest
from model.network.checkpoint import load_checkpoint, save_checkpoint
from model.sources import sha256_of
from model.spec import SpecError
from tests.model.tiny import tiny_bundle, tiny_checkpoint, write_tiny_checkpoint


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle().bundle, tmp_path / "bundle"))


def test_a_bundle_is_whole(tmp_path: Path) -> None:
    exported = tiny_bundle()
    bundle, trained = read_bundle(exported.bundle), load_checkpoint(exported.checkpoint)
    assert set(bundle.manifest.files) == {
        "MODEL_CARD.md",
        "encoders/text.onnx",
        "encoders/whisper.onnx",
        "ensemble.onnx",
        "members/words.onnx",
        "members/words.weights",
        "members/voice.onnx",
        "members/voice.weights",
        "meta.onnx",
        "tokenizers/text.json",
    }
    assert bundle.spec.members == trained.spec.members
    assert bundle.manifest.temperature == trained.temperature
    assert bundle.manifest.metrics == trained.metrics
    assert bundle.manifest.prior_log_ratio == trained.prior_log_ratio != {}
    assert (bundle.path / "MODEL_CARD.md").read_text() == trained.model_card


def test_encoders_say_where_their_weights_are() -> None:
    exported = tiny_bundle()
    bundle = read_bundle(exported.bundle)
    text, whisper, prosody = (bundle.spec.encoder(name) for name in ("text", "whisper", "prosody"))
    assert text.sources == ("bundle:encoders/text.onnx",)
    assert text.sha256 == bundle.manifest.files["encoders/text.onnx"]
    assert whisper.sources == load_checkpoint(exported.checkpoint).spec.encoder("whisper").sources
    assert whisper.sha256 == sha256_of(exported.checkpoint.parent / "whisper" / "model.bin")
    assert (prosody.sources, prosody.sha256) == ((), "")


def test_every_graph_was_compared() -> None:
    manifest = read_bundle(tiny_bundle().bundle).manifest
    assert set(manifest.parity) == set(manifest.tolerances)
    assert set(manifest.parity) == {
        REFUSED,
        OTHER_OPSET,
        "encoder text, float32",
        "encoder text",
        "encoder text, neighbours",
        "encoder text, padding",
        "encoder whisper, float32",
        "encoder whisper",
        "encoder whisper, neighbours",
        "member voice",
        "member words",
        "meta-classifier",
        "ensemble",
        "ensemble, padding",
        "ensemble, neighbours",
        "bundle",
    }
    assert all(manifest.parity[name] <= limit for name, limit in manifest.tolerances.items())


def test_graphs_do_not_tell_where_they_were_made() -> None:
    for path in tiny_bundle().bundle.rglob("*.onnx"):
        data = path.read_bytes()
        assert b".py" not in data
        assert str(Path(__file__).parents[2]).encode() not in data
        onnx.checker.check_model(onnx.load(path), full_check=True)


def test_weights_of_members_are_kept_once() -> None:
    """The ensemble's graph refers to the files beside its members' graphs."""
    folder = tiny_bundle().bundle
    graph = onnx.load(folder / "ensemble.onnx", load_external_data=False)
    places = {
        entry.value for tensor in graph.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert places == {"members/voice.weights", "members/words.weights"}
    assert all(len(tensor.raw_data) < 4096 for tensor in graph.graph.initializer)


def test_an_ensemble_with_other_weights_is_not_the_bundles() -> None:
    exported = tiny_bundle()
    other = tiny_checkpoint(load_checkpoint(exported.checkpoint).spec, seed=9)
    figures = measure(other, read_bundle(exported.bundle), Limits())
    failed = {figure.name for figure in figures if not figure.passes}
    assert {"ensemble", "member voice", "member words", "meta-classifier"} <= failed


def test_a_tampered_member_is_found(copied: Path) -> None:
    path = copied / "members" / "words.onnx"
    graph = onnx.load(path)
    weights = next(t for t in graph.graph.initializer if t.name == "network.classifier.bias")
    values = onnx.numpy_helper.to_array(weights) + np.eye(8, dtype=np.float32)[0] * 1e-3
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(graph, path)
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    trained = load_checkpoint(tiny_bundle().checkpoint)
    with pytest.raises(ParityError, match=r"member words: the difference is .* \(1 of 14 figures fail\)"):
        check(measure(trained, read_bundle(copied), Limits()))


def test_a_graph_that_does_not_compute_its_network_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path)
    with pytest.raises(ParityError, match="encoder whisper, float32"):
        write_bundle(checkpoint, tmp_path / "out" / "bundle", limits=Limits(hidden=0.0))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_taken_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="exists already"):
        write_bundle(tiny_bundle().checkpoint, tmp_path)


def test_a_checkpoint_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(load_checkpoint(tiny_bundle().checkpoint).spec)
    save_checkpoint(tmp_path / "checkpoint", replace(checkpoint, name="broken"))
    (tmp_path / "checkpoint" / "meta.safetensors").unlink()
    with pytest.raises(SpecError):
        write_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_command_line_compares_and_refuses(tmp_path: Path) -> None:
    exported = tiny_bundle()
    run = CliRunner().invoke
    assert run(app, ["parity", str(exported.checkpoint), str(exported.bundle)]).exit_code == 0
    assert run(app, ["bundle", str(exported.checkpoint), str(tmp_path)]).exit_code == 2
    other = tiny_checkpoint(load_checkpoint(exported.checkpoint).spec, seed=9)
    save_checkpoint(tmp_path / "other", other)
    assert run(app, ["parity", str(tmp_path / "other"), str(exported.bundle)]).exit_code == 2


@pytest.mark.parametrize("command", ["bundle", "parity"])
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: medusa-export {command}" in result.output
