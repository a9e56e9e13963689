"""A recipe over every kind of encoder: checkpoint, bundle, parity, and what the daemon's engine makes of a recording."""

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from daemon.asr import scorable
from daemon.engine import EngineSettings, load_models, running_engine
from daemon.messages import Scores, Utterance
from export.references import Reference, SpeechReference, reference_of, relative
from model.audio import MAX_UTTERANCE, MIN_UTTERANCE, Samples
from model.bundle import graph_file, inputs_of, mask_of, read_bundle
from model.device_shapes import SHORTEST_SPEECH
from model.features import Frames, collate, functionals, prosody_frames
from model.network.checkpoint import load_checkpoint
from model.onnx_encoders import SPEECH_STEP, OnnxSpeechEncoder, with_graphs
from model.onnx_session import make_session
from model.recording import read_mono
from model.runtime import load_runtime
from tests.factories import make_info
from tests.model.tiny_all import SPEECH, tiny_all
from tests.model.tiny_audio import noise
from train.encoding import TextPasses, load_speech
from train.transcribing import load_whisper

pytestmark = pytest.mark.timeout(1800)  # the first test exports and compares twelve graphs

CPU = torch.device("cpu")
LIMIT = 1e-5
POSTERIOR_LIMIT = 2e-5
HOP = 320
ASSETS = Path(__file__).parents[1] / "assets"
ENCODERS = ("wavlm", "hubert", "wav2vec2", "whisper", "roberta", "modernbert")


@cache
def reference(name: str) -> Reference[Samples]:
    """Of an encoder, from its checkpoint; these are tiny, so all are kept."""
    return reference_of(load_checkpoint(tiny_all().checkpoint).spec.encoder(name))


@cache
def session(name: str) -> onnxruntime.InferenceSession:
    """Of an encoder's graph in the bundle."""
    bundle = read_bundle(tiny_all().bundle)
    return make_session(bundle.path / graph_file(bundle.spec.encoder(name)), threads=1)


def test_the_bundle_holds_every_encoder_and_passed_its_own_checks() -> None:
    bundle = read_bundle(tiny_all().bundle)
    assert {encoder.name for encoder in with_graphs(bundle.spec)} == set(ENCODERS)
    assert {f"encoders/{name}.onnx" for name in ENCODERS} <= set(bundle.manifest.files)
    assert {f"tokenizers/{name}.json" for name in ("roberta", "modernbert")} <= set(bundle.manifest.files)
    parity, limits = bundle.manifest.parity, bundle.manifest.tolerances
    assert all(parity[name] <= limits[name] for name in limits)
    for name in ENCODERS:
        assert parity[f"encoder {name}, float32"] <= LIMIT
        assert f"encoder {name}, neighbours" in limits


def test_the_bundle_says_what_its_speech_encoders_read() -> None:
    bundle, trained = read_bundle(tiny_all().bundle), load_checkpoint(tiny_all().checkpoint)
    for name, (norm, standardised) in SPEECH.items():
        encoder = bundle.spec.encoder(name)
        assert (encoder.standardised, encoder.equal_lengths) == (standardised, norm == "group")
        assert encoder.sources == (f"bundle:encoders/{name}.onnx",)
        assert trained.spec.encoder(name).sources != encoder.sources


# Graphs against networks: no length, no padding, no neighbour changes a result.


@pytest.mark.parametrize("name", sorted(SPEECH))
def test_a_speech_graph_is_right_at_every_edge(name: str) -> None:
    """The shortest legal length, a frame boundary and one sample off it, bucket edges, the longest; alone and in a batch."""
    boundary = SHORTEST_SPEECH + 20 * HOP
    lengths = (SHORTEST_SPEECH, SHORTEST_SPEECH + 1, boundary - 1, boundary, boundary + 1, SPEECH_STEP, SPEECH_STEP + 1)
    audio = noise(*lengths, MAX_UTTERANCE)
    expected = reference(name).expected(audio)
    assert [len(frames) for frames in expected] == [1, 1, 20, 21, 21, 24, 24, 999]
    assert relative(expected, [reference(name).found(session(name), [wave])[0] for wave in audio]) <= LIMIT
    for size in (2, 7):
        assert relative(expected[:size], reference(name).found(session(name), audio[:size])) <= LIMIT
    for extra in (1, HOP - 1, HOP, 5 * HOP):
        assert relative(expected[2:5], reference(name).found(session(name), audio[2:5], extra)) <= LIMIT


def test_a_graph_that_would_hear_padding_has_no_mask() -> None:
    assert {node.name for node in session("wav2vec2").get_inputs()} == {"audio"}
    assert {node.name for node in session("wavlm").get_inputs()} == {"audio", "audio_mask"}


def test_the_mask_is_what_keeps_padding_out() -> None:
    """Else the tests above would pass for a graph that cuts its output."""
    wavlm = reference("wavlm")
    assert isinstance(wavlm, SpeechReference)
    (wave,) = noise(MIN_UTTERANCE)
    padded = np.pad(wave, (0, 8000))
    everything = {"audio": padded[None], "audio_mask": np.ones((1, len(padded)), np.bool_)}
    hidden, _ = session("wavlm").run(None, everything)
    heard, _ = session("wavlm").run(None, {**everything, "audio_mask": (np.arange(len(padded)) < len(wave))[None]})
    assert relative([heard[0, :19]], [hidden[0, :19]]) > 0.01


@pytest.mark.parametrize("name", sorted(SPEECH))
def test_served_frames_do_not_depend_on_neighbours(name: str) -> None:
    bundle = read_bundle(tiny_all().bundle)
    encoder = OnnxSpeechEncoder(bundle, bundle.spec.encoder(name), threads=1)
    audio = noise(MIN_UTTERANCE, 11_111, SHORTEST_SPEECH, 8000, 11_111, 8001)
    together = encoder.encode(audio)
    assert relative([encoder.encode([wave])[0] for wave in audio], together) <= LIMIT
    assert relative(reference(name).expected(audio), together) <= LIMIT
    assert encoder.encode([]) == []
    with pytest.raises(ValueError, match="at least the 400 samples that one frame hears, got 399"):
        encoder.encode([audio[0], audio[0][:399]])


# The whole way: an utterance as the daemon cuts it, by what training computed and by what is served.


def clip(name: str) -> Samples:
    return read_mono(ASSETS / f"{name}.flac")


def frames_of_training(audio: Samples, words: str) -> dict[str, Frames]:
    """Each modality by the code that fills the feature cache."""
    spec = load_checkpoint(tiny_all().checkpoint).spec
    (whisper,) = load_whisper(spec.encoder("whisper")).encode([audio]).frames
    prosody = prosody_frames(audio)
    frames = {"whisper": whisper, "prosody": prosody, "functionals": functionals(whisper, prosody)}
    for encoder in spec.encoders:
        if encoder.kind == "speech-transformer":
            (frames[encoder.name],) = load_speech(encoder, CPU)([audio])
        if encoder.kind == "text-transformer":
            (frames[encoder.name],) = TextPasses(encoder, CPU)([words])
    return frames


def posterior_of_training(frames: dict[str, Frames]) -> list[float]:
    checkpoint = load_checkpoint(tiny_all().checkpoint)
    feed: dict[str, torch.Tensor] = {}
    for encoder in inputs_of(checkpoint.spec):
        values, mask = collate([frames[encoder.name]], encoder.stack)
        feed |= {encoder.name: torch.from_numpy(values), mask_of(encoder.name): torch.from_numpy(mask)}
    masks = {encoder.name: feed[mask_of(encoder.name)] for encoder in inputs_of(checkpoint.spec)}
    with torch.no_grad():
        probabilities, *_ = checkpoint.ensemble()(feed, masks)
    return [float(value) for value in probabilities[0]]


def scored(audio: Sequence[Samples], *, final: bool = True) -> list[Scores]:
    """By the engine, all at once, so that utterances of one bucket share a batch."""
    settings = EngineSettings(device="cpu")
    models = load_models(tiny_all().bundle, settings)

    async def run() -> list[Scores]:
        async with running_engine(models, settings) as engine:
            info = make_info()
            utterances = [utterance(samples, final) for samples in audio]
            return list(await asyncio.gather(*(engine.score(info, one) for one in utterances)))

    return asyncio.run(run())


def utterance(audio: Samples, final: bool) -> Utterance:
    return Utterance(0, 0, 0, len(audio), audio, interim=0 if final else 1, decided=len(audio))


def test_the_engine_serves_what_was_trained() -> None:
    """And another utterance's frames of any one encoder would have been noticed."""
    spoken = [clip("angry_words"), clip("hello_3s"), clip("flat_words")]
    trained: list[dict[str, Frames]] = []
    for audio, scores in zip(spoken, scored(spoken), strict=True):
        assert scores.transcript is not None
        assert scores.transcript.trusted
        assert scores.latency.encoders > 0
        trained.append(frames_of_training(audio, scores.transcript.text))
        expected = posterior_of_training(trained[-1])
        np.testing.assert_allclose(scores.posteriors.probabilities, expected, atol=POSTERIOR_LIMIT)
    for name, others in trained[1].items():
        moved = np.subtract(posterior_of_training({**trained[0], name: others}), posterior_of_training(trained[0]))
        assert np.abs(moved).max() > 5 * POSTERIOR_LIMIT, name


@pytest.mark.parametrize("samples", [0, 1, 399, 400, MIN_UTTERANCE - 1])
def test_an_utterance_shorter_than_one_frame_is_scored_as_the_shortest(samples: int) -> None:
    audio = clip("angry_words")[:samples]
    runtime = load_runtime(tiny_all().bundle, threads=1)
    assert len(scorable(audio)) == MIN_UTTERANCE >= SHORTEST_SPEECH
    for encoder in runtime.speech:
        (frames,) = encoder.encode([scorable(audio)])
        assert frames.shape == (1 + (MIN_UTTERANCE - SHORTEST_SPEECH) // HOP, encoder.spec.dim)
        assert np.isfinite(frames).all()


def test_an_interim_result_hears_every_speech_encoder_but_no_words() -> None:
    audio = clip("angry_words")
    (scores,) = scored([audio[:100]], final=False)
    assert scores.transcript is None
    assert sum(scores.posteriors.probabilities) == pytest.approx(1.0)
