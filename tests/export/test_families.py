"""A bundle of members of all three families, exported like any other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle import write_bundle
from export.half import emulated
from export.parity_graphs import example_items, feed
from export.precision import Precision, converted, kernel_of
from export.to_onnx import export_member
from model.bundle import BundleError, mask_of, read_bundle
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.onnx_session import make_session
from model.runtime import EnsembleRuntime
from model.spec import EnsembleSpec, MemberSpec
from tests.model.tiny import tiny_checkpoint, tiny_encoders, tiny_frames, tiny_linear, tiny_member

LIMIT = 1e-5
COMPARED = (
    "member full",
    "member guided",
    "member plain",
    "member flat",
    "ensemble",
    "ensemble, padding",
    "ensemble, neighbours",
)


def members() -> tuple[MemberSpec, ...]:
    full = replace(
        tiny_member("full", ("prosody", "contour")),
        family="vga",
        attention="vad-guided",
        gates="shares",
        contrast=4,
    )
    return (
        full,
        replace(tiny_member("guided", ("prosody", "contour")), attention="vad-guided"),
        tiny_member("plain", ("contour",)),
        replace(full, name="full too", seed=4),
        tiny_linear("flat", ("contour", "prosody")),
        tiny_linear("flat too", ("contour", "prosody")),
        tiny_linear("flat voice", ("prosody",)),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders that are arithmetic alone, so that members are all that is exported."""
    folder = tmp_path_factory.mktemp("second-family") / "checkpoint"
    prosody = next(encoder for encoder in tiny_encoders() if encoder.kind == "prosody")
    encoders = (prosody, replace(prosody, name="contour", stack=4))
    spec = EnsembleSpec(encoders, members(), ("angry", "sad", "neutral"), ("arousal",))
    save_checkpoint(folder, made_of(spec))
    return folder


def made_of(spec: EnsembleSpec) -> Checkpoint:
    """Random networks; two linear ones standardise alike, as those do that were trained on the same clips."""
    found = tiny_checkpoint(spec)
    flat, alike = found.members[4:6]
    alike.stacks.load_state_dict(flat.stacks.state_dict())
    return found


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    write_bundle(checkpoint, checkpoint.parent / "bundle")
    return checkpoint.parent / "bundle"


def test_all_families_come_back_from_a_checkpoint_as_they_were(checkpoint: Path) -> None:
    found = load_checkpoint(checkpoint)
    made = made_of(found.spec)
    assert [type(member) for member in found.members] == [type(member) for member in made.members]
    assert found.spec.members == members()
    for ours, theirs in zip(found.members, made.members, strict=True):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all((ours.state_dict()[n] == values).all() for n, values in theirs.state_dict().items())


def test_they_are_exported_compute_the_same_and_tell_their_shares(bundle: Path) -> None:
    found = read_bundle(bundle)
    parity = found.manifest.parity
    assert {name: parity[name] for name in COMPARED if not parity[name] <= LIMIT} == {}
    assert found.spec.members == members()
    assert found.manifest.outputs["modality_share"] == (None, 3)
    assert found.spec.shared_by == ("prosody", "contour", "interaction")
    items = tiny_frames(found.spec, np.random.default_rng(0), 3)
    for posteriors in EnsembleRuntime(found, threads=1).score(items):
        assert sum(posteriors.probabilities) == pytest.approx(1.0)


def test_a_result_tells_what_the_networks_shares_are(checkpoint: Path, bundle: Path) -> None:
    """The mean over both members that have some, by the names of their modalities."""
    ensemble, encoders = load_checkpoint(checkpoint).ensemble(), read_bundle(bundle).spec.encoders
    items = tiny_frames(ensemble.spec, np.random.default_rng(1), 4)
    tensors = {name: torch.from_numpy(values) for name, values in feed(encoders, items).items()}
    with torch.no_grad():
        expected = ensemble.modality_share(tensors, {e.name: tensors[mask_of(e.name)] for e in encoders}).numpy()
    found = [posteriors.modality_share for posteriors in EnsembleRuntime(read_bundle(bundle), threads=1).score(items)]
    assert {tuple(name for name, _ in shares) for shares in found} == {("prosody", "contour", "interaction")}
    np.testing.assert_allclose([[share for _, share in shares] for shares in found], expected, atol=LIMIT)
    assert np.ptp(expected, axis=0).max() > 10 * LIMIT


def test_projections_that_only_training_reads_are_not_in_the_bundle(bundle: Path) -> None:
    names = {tensor.name for tensor in onnx.load(bundle / "members" / "full.onnx").graph.initializer}
    assert any(".guide." in name for name in names)
    assert not any("views" in name for name in names)


def test_a_manifest_that_hides_the_shares_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    data = json.loads(path.read_text())
    del data["outputs"]["modality_share"]
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="inputs and outputs do not fit the ensemble"):
        read_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("place", "precision", "limit"),
    [(0, "fp16", 5e-3), (0, "bf16", 2e-2), (0, "int8", 3e-2), (4, "fp16", 5e-3), (4, "bf16", 1e-1)],
)
def test_their_graphs_may_be_computed_in_other_precisions(
    checkpoint: Path, place: int, precision: Precision, limit: float
) -> None:
    found = load_checkpoint(checkpoint)
    batch = feed(found.spec.encoders, example_items(found))
    exact = export_member(found.members[place], "fused").SerializeToString()
    model = converted(export_member(found.members[place], kernel_of(precision)), precision)
    changed = (emulated(model) if precision == "bf16" else model).SerializeToString()
    logits = [make_session(graph, threads=1).run(["logits"], batch)[0] for graph in (exact, changed)]
    assert 0 < np.abs(logits[0] - logits[1]).max() < limit
    assert np.ptp(logits[0], axis=0).max() > 0.1
