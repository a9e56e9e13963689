import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.bundle import (
    FORMAT_VERSION,
    Bundle,
    BundleError,
    Manifest,
    ensemble_inputs,
    ensemble_outputs,
    inputs_of,
    read_bundle,
    write_manifest,
)
from model.spec import EnsembleSpec
from tests.model.tiny import tiny_encoders, tiny_member, tiny_spec

GRAPH = b"\x08\x0a" * 5000


def describe(spec: EnsembleSpec) -> Manifest:
    return Manifest(
        name="tiny",
        ensemble=spec,
        temperature=1.5,
        abstain_below=0.2,
        metrics={"uar": 0.5},
        training={"licence": "none"},
        opset=20,
        tolerances={"ensemble": 1e-5},
        parity={"ensemble": 1e-7},
        inputs=ensemble_inputs(spec),
        outputs=ensemble_outputs(spec),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    for name in ("encoders", "members", "tokenizers"):
        (folder / name).mkdir(parents=True)
    (folder / "ensemble.onnx").write_bytes(GRAPH)
    (folder / "encoders" / "whisper.onnx").write_bytes(GRAPH[1:])
    (folder / "members" / "voice.onnx").write_bytes(GRAPH[::-1])
    (folder / "tokenizers" / "text.json").write_text("{}")
    (folder / "MODEL_CARD.md").write_text("# Tiny\n")
    write_manifest(folder, describe(tiny_spec()))
    return folder


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    return str(caught.value)


def test_reads_what_was_written(bundle: Path) -> None:
    found: Bundle = read_bundle(bundle)
    assert found.spec == tiny_spec()
    assert found.manifest == write_manifest(bundle, describe(tiny_spec()))
    assert found.id.startswith("tiny-")
    assert len(found.id) == len("tiny-") + 12


def test_sums_are_those_of_sha256sum(bundle: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, check=True, capture_output=True)
    assert len((bundle / "SHA256SUMS").read_text().splitlines()) == 6


def test_id_depends_on_the_files_alone(bundle: Path, tmp_path: Path) -> None:
    first = read_bundle(bundle).id
    assert Path(shutil.move(bundle, tmp_path / "elsewhere")).is_dir()
    assert read_bundle(tmp_path / "elsewhere").id == first
    (tmp_path / "elsewhere" / "ensemble.onnx").write_bytes(b"other")
    assert write_manifest(tmp_path / "elsewhere", describe(tiny_spec())).bundle_id != first


@pytest.mark.parametrize("name", ["ensemble.onnx", "members/voice.onnx", "MODEL_CARD.md"])
def test_a_flipped_bit_is_refused(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    reason = refusal(bundle)
    assert name in reason
    assert "is damaged" in reason


def test_a_truncated_file_is_refused(bundle: Path) -> None:
    (bundle / "ensemble.onnx").write_bytes(GRAPH[:-1])
    assert f"{len(GRAPH) - 1} bytes" in refusal(bundle)


@pytest.mark.parametrize("name", ["ensemble.onnx", "SHA256SUMS"])
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"lacks {name}" in refusal(bundle)


def test_a_file_that_is_not_listed_is_refused(bundle: Path) -> None:
    (bundle / "members" / "extra.onnx").write_bytes(b"")
    assert "remove members/extra.onnx" in refusal(bundle)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "is no bundle: it has no manifest.json" in refusal(tmp_path)
    assert "is no bundle" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("version", [0, 1, FORMAT_VERSION + 1, "1", True, None])
def test_another_format_version_is_refused_with_the_way_forward(bundle: Path, version: object) -> None:
    change_manifest(bundle, lambda data: data.update(format_version=version))
    reason = refusal(bundle)
    assert f"format version {version!r}, this program reads {FORMAT_VERSION}" in reason
    assert "export the checkpoint again with this medusa-rt (medusa-export bundle CHECKPOINT OUT)" in reason
    assert ("upgrade medusa-rt" in reason) == (version == FORMAT_VERSION + 1)


def test_what_the_ensemble_runs_must_be_there(bundle: Path) -> None:
    """A manifest that lists what is there, but not all that would be opened."""
    for name in ("encoders/whisper.onnx", "tokenizers/text.json"):
        (bundle / name).unlink()
    write_manifest(bundle, describe(tiny_spec()))
    assert "lacks encoders/whisper.onnx, tokenizers/text.json, which its ensemble runs" in refusal(bundle)


@pytest.mark.parametrize("source", ["bundle:../secret.onnx", "bundle:/etc/hostname", "bundle:encoders/text.onnx"])
def test_a_graph_that_no_hash_vouches_for_is_refused(bundle: Path, source: str) -> None:
    (bundle.parent / "secret.onnx").write_bytes(GRAPH)
    write_manifest(bundle, describe(tiny_spec(tiny_encoders(text=source))))
    assert f"lacks {source.removeprefix('bundle:')}, which its ensemble runs" in refusal(bundle)


def test_a_signature_is_no_file_of_the_bundle(bundle: Path) -> None:
    """It is made after the sums, and one that does not fit any more is not kept."""
    before = read_bundle(bundle)
    (bundle / "SHA256SUMS.sig").write_bytes(bytes(64))
    assert read_bundle(bundle) == before
    write_manifest(bundle, describe(tiny_spec()))
    assert not (bundle / "SHA256SUMS.sig").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.pop("opset"), "fields missing: ['opset']"),
        (lambda data: data.update(colour="red"), "fields unknown: ['colour']"),
        (lambda data: data.update(temperature=0), "temperature is above 0"),
        (lambda data: data.update(temperature=True), "temperature is a number, got True"),
        (lambda data: data.update(abstain_below=1.5), "abstain_below in 0..1"),
        (lambda data: data.update(prior_log_ratio={"bored": 0.1}), "neutral, got bored"),
        (lambda data: data.update(files=[]), "files is an object, got []"),
        (lambda data: data.update(costs={"text": {"flops": "many"}}), "costs['text']['flops'] is a number, got 'many'"),
        (lambda data: data.update(precisions={"text": 16}), "precisions['text'] is text, got 16"),
        (lambda data: data["ensemble"].pop("members"), "fields missing in ensemble: ['members']"),
        (lambda data: data["ensemble"]["encoders"][0].update(dim="16"), "ensemble.encoders[0].dim is a whole number"),
        (lambda data: data["ensemble"]["encoders"][1].update(kind="ears"), "encoders[1].kind is one of 'whisper-"),
        (lambda data: data["ensemble"]["encoders"][2].update(sources="path:text"), "encoders[2].sources is a list"),
        (lambda data: data["ensemble"]["members"][1].update(hands=2), "unknown in ensemble.members[1]: ['hands']"),
        (lambda data: data["ensemble"]["members"][1].update(heads=3), "heads must divide dim"),
        (lambda data: data["parity"].update(ensemble=2e-5), "parity says 2e-05 for 'ensemble', but at most 1e-05"),
        (lambda data: data.update(tolerances={}), "name the same figures"),
        (lambda data: data["parity"].update(ensemble=float("nan")), "NaN is no number in JSON"),
        (lambda data: data["ensemble"].update(trained_classes=["joy"]), "unknown emotion classes"),
        (lambda data: data["inputs"].update(text=[None, None, 7]), "do not fit the ensemble"),
        (lambda data: data["inputs"].update(text=3), "inputs['text'] is a list, got 3"),
        (lambda data: data["files"].update({"ensemble.onnx": "0" * 64}), "ensemble.onnx is damaged"),
        (lambda data: data.update(bundle_id="tiny-000000000000"), "calls itself 'tiny-000000000000'"),
        (lambda data: data.update(abstain_below=0.9), "do not agree"),
    ],
)
def test_a_changed_manifest_is_refused(bundle: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    change_manifest(bundle, change)
    assert reason in refusal(bundle)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=200) | st.sampled_from([b"[" * 100_000, b"null", b"[]", b'{"format_version": 1}', b"\xff"]))
def test_any_bytes_in_place_of_the_manifest_are_refused(bundle: Path, data: bytes) -> None:
    (bundle / "manifest.json").write_bytes(data)
    refusal(bundle)


def test_the_graph_reads_only_encoders_of_members() -> None:
    spec = EnsembleSpec(tiny_encoders(), (tiny_member("words", ("text", "prosody")),), ("sad", "happy"), ())
    assert [encoder.name for encoder in inputs_of(spec)] == ["prosody", "text"]
    assert list(ensemble_inputs(spec)) == ["prosody", "prosody_mask", "text", "text_mask"]
