"""A bundle with smaller ensembles for when there is not time for all: exported, checked, refused where they do not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle import write_bundle
from export.errors import ParityError
from export.parity import Limits, check, measure
from export.parity_graphs import feed
from model.bundle import BundleError, fallback_file, inputs_of, mask_of, read_bundle, write_manifest
from model.features import Frames
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.metaclassifier import meta_input
from model.runtime import EnsembleRuntime, load_runtime
from model.sources import sha256_of
from model.spec import EnsembleSpec, Fallback, MemberSpec, SpecError, check_fallbacks
from tests.model.tiny import tiny_checkpoint, tiny_encoders, tiny_frames, tiny_member, with_fallbacks

LIMIT = 1e-5
NAMES = ("both", "shared", "steps", "again")
DROPPED = (("shared", "steps", "again"), ("steps", "again"), ("again",))


def members() -> tuple[MemberSpec, ...]:
    two = tiny_member("shared", ("prosody", "contour"))
    return (
        replace(two, name="both", seed=2),
        replace(two, family="vga", attention="vad-guided", gates="shares"),
        tiny_member("steps", ("contour",)),
        tiny_member("again", ("contour",), seed=3),
    )


def checkpoint_of(*fallbacks: tuple[str, ...]) -> Checkpoint:
    """Encoders that are arithmetic alone, so that members are all that is exported."""
    prosody = next(encoder for encoder in tiny_encoders() if encoder.kind == "prosody")
    encoders = (prosody, replace(prosody, name="contour", stack=4))
    spec = EnsembleSpec(encoders, members(), ("angry", "sad", "neutral"), ("arousal",))
    return with_fallbacks(tiny_checkpoint(spec), *fallbacks)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fallbacks") / "checkpoint"
    save_checkpoint(folder, checkpoint_of(*DROPPED))
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    write_bundle(checkpoint, checkpoint.parent / "bundle")
    return checkpoint.parent / "bundle"


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def items(count: int = 5) -> list[dict[str, Frames]]:
    return tiny_frames(checkpoint_of().spec, np.random.default_rng(2), count)


def test_they_come_back_from_a_checkpoint_as_they_were(checkpoint: Path, tmp_path: Path) -> None:
    made, found = checkpoint_of(*DROPPED), load_checkpoint(checkpoint)
    assert [each.spec for each in found.fallbacks] == [each.spec for each in made.fallbacks]
    for ours, theirs in zip(found.fallbacks, made.fallbacks, strict=True):
        torch.testing.assert_close(ours.meta.state_dict(), theirs.meta.state_dict(), rtol=0, atol=0)
    save_checkpoint(tmp_path, made)
    save_checkpoint(tmp_path, checkpoint_of())
    assert not list(tmp_path.rglob("fallbacks*")), "an older run's must not be taken for this one's"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_fallback_says_what_its_members_and_its_own_meta_classifier_say(
    checkpoint: Path, bundle: Path, number: int
) -> None:
    """Reckoned here from the whole ensemble's votes, not by the code that exports it."""
    trained, found = load_checkpoint(checkpoint), items()
    tensors = {name: torch.from_numpy(values) for name, values in feed(trained.spec.encoders, found).items()}
    masks = {encoder.name: tensors[mask_of(encoder.name)] for encoder in trained.spec.encoders}
    ensemble, chosen = trained.ensemble(), trained.fallbacks[number - 1]
    rows = [NAMES.index(name) for name in chosen.spec.members]
    with torch.no_grad():
        votes = ensemble(tensors, masks)[2][:, rows]
        ratings = torch.stack([trained.members[row](tensors, masks)[1] for row in rows], dim=1)
        logits, _ = chosen.meta(meta_input(votes, ratings))
        expected = torch.softmax(logits / chosen.spec.temperature + ensemble.class_bias, dim=1).numpy()
    whole = EnsembleRuntime(read_bundle(bundle), threads=1).score(found)
    scores = EnsembleRuntime(read_bundle(bundle), threads=1, fallback=number).score(found)
    np.testing.assert_allclose([score.probabilities for score in scores], expected, atol=LIMIT)
    assert np.abs(expected - [score.probabilities for score in whole]).max() > 1e3 * LIMIT
    for score in scores:
        assert score.members_used == chosen.spec.members
        assert score.abstained == (score.confidence < chosen.spec.abstain_below)
        assert bool(score.modality_share) == ("shared" in chosen.spec.members)
    assert {(score.members_used, score.abstained) for score in whole} == {((), False)}
    assert number != len(DROPPED) or all(score.abstained for score in scores), "its own threshold, not the whole one's"


def test_a_fallback_reads_no_more_than_its_members_do(bundle: Path) -> None:
    runtime = load_runtime(bundle, threads=1)
    assert [[encoder.name for encoder in each.reads] for each in (runtime.ensemble, *runtime.fallbacks)] == [
        ["prosody", "contour"],
        ["prosody", "contour"],
        ["contour"],
        ["contour"],
    ]
    contours = [{"contour": item["contour"]} for item in items()]
    scores = runtime.fallbacks[1].score(contours)
    assert scores == runtime.fallbacks[1].score(items())
    with pytest.raises(ValueError, match="no 'prosody' frames"):
        runtime.ensemble.score(contours)


def test_the_manifest_tells_them_with_their_parity_and_their_cost(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert [fallback.members for fallback in manifest.fallbacks] == list(DROPPED)
    for number in (1, 2, 3):
        for figure in ("", ", padding", ", neighbours"):
            assert manifest.parity[f"fallback {number}{figure}"] <= manifest.tolerances[f"fallback {number}{figure}"]
        assert fallback_file(number) in manifest.files
    sizes = [manifest.costs[name]["parameters"] for name in ("ensemble", "fallback 1", "fallback 2", "fallback 3")]
    assert sizes == sorted(set(sizes), reverse=True)
    held = onnx.load(bundle / fallback_file(1), load_external_data=False).graph.initializer
    assert {e.value for tensor in held for e in tensor.external_data if e.key == "location"} == {
        f"members/{name}.weights" for name in DROPPED[0]
    }, "large constants are the members'"


def test_a_bundle_from_before_fallbacks_is_read(copied: Path) -> None:
    """As it was written then: without the field, and without the files."""
    manifest = read_bundle(copied).manifest
    for number in (1, 2, 3):
        (copied / fallback_file(number)).unlink()
    write_manifest(copied, replace(manifest, fallbacks=()))
    data = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    assert data.pop("fallbacks") == []
    (copied / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    sums = (copied / "SHA256SUMS").read_text(encoding="utf-8").splitlines(keepends=True)
    rewritten = write_sum(copied / "manifest.json")
    (copied / "SHA256SUMS").write_text("".join(rewritten if " manifest.json" in line else line for line in sums))
    assert read_bundle(copied).manifest.fallbacks == ()
    assert load_runtime(copied, threads=1).fallbacks == ()


def write_sum(path: Path) -> str:
    return f"{sha256_of(path)}  {path.name}\n"


def test_a_fallback_whose_graph_is_missing_is_refused(copied: Path) -> None:
    manifest = read_bundle(copied).manifest
    (copied / fallback_file(2)).unlink()
    write_manifest(copied, manifest)
    with pytest.raises(BundleError, match=r"lacks fallback-2\.onnx, which its ensemble runs"):
        read_bundle(copied)


def test_a_graph_of_other_members_is_refused(copied: Path) -> None:
    manifest = read_bundle(copied).manifest
    shutil.copyfile(copied / fallback_file(1), copied / fallback_file(3))
    write_manifest(copied, manifest)
    with pytest.raises(BundleError, match=r"fallback-3\.onnx has the inputs"):
        load_runtime(copied, threads=1)


def test_a_graph_that_computes_something_else_does_not_pass(checkpoint: Path, copied: Path) -> None:
    manifest, path = read_bundle(copied).manifest, copied / fallback_file(2)
    graph = onnx.load(path, load_external_data=False)
    (weight,) = [tensor for tensor in graph.graph.initializer if tensor.name == "meta.weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(graph, path)
    write_manifest(copied, manifest)
    trained = load_checkpoint(checkpoint)
    with pytest.raises(ParityError, match="^fallback 2: the difference is"):
        check(measure(trained, read_bundle(copied), Limits()))


def test_a_bundle_with_other_fallbacks_than_its_checkpoint_is_told(bundle: Path) -> None:
    with pytest.raises(ParityError, match="the bundle has .*fallback 3.*, the checkpoint "):
        measure(checkpoint_of(*DROPPED[:2]), read_bundle(bundle), Limits())


@pytest.mark.parametrize(
    "fallbacks",
    [
        ((),),
        (NAMES,),
        (("both", "unknown"),),
        (("steps", "shared"),),
        (("steps", "steps"),),
        (("steps",), ("again",)),
        (("steps",), ("steps",)),
    ],
)
def test_an_order_that_is_none_is_refused(fallbacks: tuple[tuple[str, ...], ...], copied: Path) -> None:
    with pytest.raises(SpecError, match=r"fallback \d has some, but not all, of the members"):
        check_fallbacks(NAMES, fallbacks)
    manifest = read_bundle(copied).manifest
    write_manifest(copied, replace(manifest, fallbacks=tuple(Fallback(names, 1.0, 0.5) for names in fallbacks)))
    with pytest.raises(BundleError, match="but not all, of the members"):
        read_bundle(copied)


@pytest.mark.parametrize(("temperature", "abstain_below"), [(0.0, 0.5), (float("nan"), 0.5), (1.0, 1.5)])
def test_a_calibration_that_is_none_is_refused(temperature: float, abstain_below: float) -> None:
    with pytest.raises(SpecError, match="temperature is above 0 and its abstain_below in"):
        Fallback(("a",), temperature, abstain_below)


def test_a_reduced_ensemble_reads_what_its_members_read() -> None:
    spec = checkpoint_of().spec
    assert [encoder.name for encoder in inputs_of(spec.reduced(("again", "steps")))] == ["contour"]
    assert [member.name for member in spec.reduced(("again", "steps")).members] == ["steps", "again"]
    with pytest.raises(SpecError, match="has some of the members both, shared, steps, again, got nobody"):
        spec.reduced(("nobody",))
