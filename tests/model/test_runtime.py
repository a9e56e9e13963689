import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bundle import BundleError, read_bundle, write_manifest
from model.features import Frames
from model.labels import CLASSES
from model.onnx_session import ProviderError, make_session
from model.posteriors import Posteriors
from model.runtime import Runtime, load_runtime
from tests.model.tiny import TEXT_DIM, tiny_bundle, tiny_frames

TOLERANCE = 1e-5
SENTENCES = ["", "I am so happy today!", "no", "what are you doing?", "   "]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return load_runtime(tiny_bundle().bundle, threads=1)


@pytest.fixture(scope="module")
def items(runtime: Runtime) -> list[dict[str, Frames]]:
    return tiny_frames(runtime.bundle.spec, np.random.default_rng(3), 6)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle().bundle, tmp_path / "bundle"))


def values(posteriors: Posteriors) -> list[float]:
    attributes = [value for value in posteriors.attributes if value is not None]
    return [*posteriors.probabilities, *attributes, posteriors.uncertainty]


def test_posteriors_are_distributions_over_trained_classes(runtime: Runtime, items: list[dict[str, Frames]]) -> None:
    scores = runtime.ensemble.score(items)
    assert len(scores) == len(items)
    for posteriors in scores:
        assert posteriors.modality_share == ()
        assert sum(posteriors.probabilities) == pytest.approx(1.0)
        assert posteriors.probabilities[CLASSES.index("surprise")] == 0.0
        assert posteriors.probabilities[CLASSES.index("contempt")] == 0.0
        arousal, valence, dominance = posteriors.attributes
        assert 1.0 <= (arousal or 0.0) <= 7.0
        assert 1.0 <= (valence or 0.0) <= 7.0
        assert dominance is None


def test_no_utterances_have_no_posteriors(runtime: Runtime) -> None:
    assert runtime.ensemble.score([]) == []


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 5), min_size=1, max_size=7))
def test_a_posterior_depends_on_its_utterance_alone(
    runtime: Runtime, items: list[dict[str, Frames]], rows: list[int]
) -> None:
    batch = runtime.ensemble.score([items[row] for row in rows])
    for row, together in zip(rows, batch, strict=True):
        (alone,) = runtime.ensemble.score([items[row]])
        np.testing.assert_allclose(values(together), values(alone), atol=TOLERANCE)


def test_an_utterance_without_words_is_scored(runtime: Runtime, items: list[dict[str, Frames]]) -> None:
    silent = [{**item, "text": np.zeros((0, TEXT_DIM), np.float32)} for item in items]
    together = runtime.ensemble.score(silent)
    for item, spoken, posteriors in zip(silent, runtime.ensemble.score(items), together, strict=True):
        np.testing.assert_allclose(values(posteriors), values(runtime.ensemble.score([item])[0]), atol=TOLERANCE)
        if item["text"].shape != items[0]["text"].shape:
            assert values(posteriors) != values(spoken)


def test_words_matter(runtime: Runtime, items: list[dict[str, Frames]]) -> None:
    other = {**items[1], "text": items[1]["text"] + 1.0}
    first, second = runtime.ensemble.score([items[1], other])
    assert np.abs(np.subtract(values(first), values(second))).max() > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": np.zeros((2, TEXT_DIM + 1), np.float32)}, r"'text' frames are \[F, 12\], utterance 1 has \[2, 13\]"),
        ({"text": np.zeros(TEXT_DIM, np.float32)}, r"utterance 1 has \[12\]"),
        ({"text": np.full((1, TEXT_DIM), np.nan, np.float32)}, "utterance 1 hold NaN"),
    ],
)
def test_frames_that_cannot_be_scored_are_refused(
    runtime: Runtime, items: list[dict[str, Frames]], change: dict[str, Frames], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        runtime.ensemble.score([items[0], {**items[1], **change}])


def test_a_missing_modality_is_refused(runtime: Runtime, items: list[dict[str, Frames]]) -> None:
    with pytest.raises(ValueError, match="utterance 0 has no 'prosody' frames"):
        runtime.ensemble.score([{"whisper": items[0]["whisper"], "text": items[0]["text"]}])


def test_a_texts_frames_do_not_depend_on_its_neighbours(runtime: Runtime) -> None:
    (text,) = runtime.text
    together = text.encode(SENTENCES)
    assert [len(frames) for frames in together] == [0, 6, 1, 5, 0]
    for sentence, frames in zip(SENTENCES, together, strict=True):
        (alone,) = text.encode([sentence])
        assert alone.shape == frames.shape == (len(frames), TEXT_DIM)
        np.testing.assert_allclose(alone, frames, atol=TOLERANCE)


def test_no_texts_have_no_frames(runtime: Runtime) -> None:
    (text,) = runtime.text
    assert text.encode([]) == []


def test_a_provider_that_is_not_there_is_refused() -> None:
    with pytest.raises(ProviderError, match=r"has no TensorrtOfSomebody: it has .*CPUExecutionProvider"):
        make_session(tiny_bundle().bundle / "meta.onnx", 1, ["TensorrtOfSomebody", "CPUExecutionProvider"])


def test_a_graph_that_is_not_the_manifests_is_refused(copied: Path) -> None:
    """The hashes are right, so only the tensors tell."""
    shutil.copyfile(copied / "meta.onnx", copied / "ensemble.onnx")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(BundleError, match=r"ensemble\.onnx has the inputs .* the manifest says"):
        load_runtime(copied, threads=1)


def test_renamed_outputs_are_refused(copied: Path) -> None:
    graph = onnx.load(copied / "ensemble.onnx")
    graph.graph.node.add(op_type="Identity", input=["attributes"], output=["mood"])
    graph.graph.output[1].name = "mood"
    onnx.save(graph, copied / "ensemble.onnx")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(BundleError, match="has the outputs .*mood"):
        load_runtime(copied, threads=1)


@pytest.mark.parametrize("damage", [b"no graph", b""])
def test_a_file_that_is_no_graph_is_refused(copied: Path, damage: bytes) -> None:
    (copied / "ensemble.onnx").write_bytes(damage)
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(BundleError, match=r"ensemble\.onnx does not load in onnxruntime"):
        load_runtime(copied, threads=1)


def test_an_opset_of_the_future_is_refused(copied: Path) -> None:
    graph = onnx.load(copied / "ensemble.onnx")
    graph.opset_import[0].version = 999
    onnx.save(graph, copied / "ensemble.onnx")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(BundleError, match="upgrade it or export again"):
        load_runtime(copied, threads=1)


def test_a_tokenizer_that_is_none_is_refused(copied: Path) -> None:
    (copied / "tokenizers" / "text.json").write_text("{}")
    write_manifest(copied, read_bundle(tiny_bundle().bundle).manifest)
    with pytest.raises(BundleError, match="text encoder 'text' cannot be loaded"):
        load_runtime(copied, threads=1)
